"""From a batch of texts to aligned pairs of source and target: what a flow runs between.

Tokens that are not learned (label -100) are locked: they stand on both sides and are never edited. What lies between
two locked spans is aligned on its own, so an edit can never slip into a prompt, whatever the tokens are. The first
token of a row is always locked (an insertion stands behind some token); where it is to be learned, the beginning of
sequence is put in front of it.

Shapes: B batch, L length, N columns.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_core.config import one_of
from dllm_core.errors import DataError
from dllm_core.objectives.base import Batch, attended_positions, maskable_positions
from dllm_editflow.alignment import MODES
from dllm_editflow.kinds import COLUMN_PADDING
from dllm_editflow.sources import Maker, Tokens


class Coupling(NamedTuple):
    """Aligned pairs.

    Args:
        source, target: (B, N) int64, token ids, `BLANK`, and `COLUMN_PADDING` behind the last column.
        editable: (B, N) bool, the columns that may change.
    """

    source: Tensor
    target: Tensor
    editable: Tensor


class Row(NamedTuple):
    """One text: its tokens, which of them may change, and perhaps the draft that the changeable ones come from."""

    tokens: list[int]
    learned: list[bool]
    draft: list[int] | None


def couple(rows: Sequence[Row], maker: Maker, tokens: Tokens, mode: str, generator: torch.Generator) -> Coupling:
    """Draw a source for every text, and align.

    Args:
        maker: makes the sources.
        mode: of `dllm_editflow.alignment.align`.

    Raises:
        DataError: a draft for a text whose changeable part is in pieces.
    """
    one_of("alignment", mode, MODES)
    columns = [_aligned(row, maker, tokens, mode, generator) for row in rows]
    width = max(len(source) for source, *_ in columns)
    return Coupling(
        _stacked([source for source, *_ in columns], width),
        _stacked([target for _, target, _ in columns], width),
        _flags([editable for *_, editable in columns], width),
    )


def _stacked(rows: Sequence[list[int]], width: int) -> Tensor:
    """(B, N) int64. Through one buffer: a tensor made of nested lists takes ten times as long."""
    flat: list[int] = []
    for row in rows:
        flat += row
        flat += [COLUMN_PADDING] * (width - len(row))
    buffer = bytearray(struct.pack(f"{len(flat)}q", *flat))
    return torch.frombuffer(buffer, dtype=torch.int64).view(len(rows), width)


def _flags(rows: Sequence[bytes], width: int) -> Tensor:
    """(B, N) bool, False behind the end."""
    buffer = bytearray(b"".join(row.ljust(width, b"\0") for row in rows))
    return torch.frombuffer(buffer, dtype=torch.bool).view(len(rows), width)


def rows_of_batch(batch: Batch, bos_token_id: int | None) -> list[Row]:
    """The texts of a batch without their padding, each with a locked token in front."""
    learned = maskable_positions(batch)
    real = attended_positions(batch)
    real = torch.ones_like(learned) if real is None else real
    drafts = batch.get("source_ids")
    rows = []
    for number, (ids, own, there) in enumerate(zip(batch["input_ids"], learned, real, strict=True)):
        draft = None if drafts is None else [token for token in drafts[number].tolist() if token >= 0]
        rows.append(with_locked_start(Row(ids[there].tolist(), own[there].tolist(), draft), bos_token_id))
    return rows


def with_locked_start(row: Row, bos_token_id: int | None) -> Row:
    """The row behind a beginning of sequence, if its first token is to be learned; that one is locked if there is no
    such token."""
    if not row.tokens or not row.learned[0]:
        return row
    if bos_token_id is not None and row.tokens[0] != bos_token_id:
        return Row([bos_token_id, *row.tokens], [False, *row.learned], row.draft)
    draft = row.draft[1:] if row.draft and row.draft[0] == row.tokens[0] else row.draft
    return Row(row.tokens, [False, *row.learned[1:]], draft)


def _aligned(
    row: Row, maker: Maker, tokens: Tokens, mode: str, generator: torch.Generator
) -> tuple[list[int], list[int], bytes]:
    """Source and target of a text, and for each column whether it may change, one byte each."""
    spans = list(_spans(row))
    if row.draft is not None and sum(learned for learned, _ in spans) > 1:
        raise DataError("source_ids belongs to a text whose tokens to learn are one span; leave it out, or split it")
    source: list[int] = []
    target: list[int] = []
    editable = b""
    for learned, span in spans:
        # Not `align`, which looks at every token's type: these have been in a tensor.
        own = MODES[mode](maker(span, row.draft, tokens, generator), span, generator) if learned else (span, span)
        source += own[0]
        target += own[1]
        editable += bytes([learned]) * len(own[0])
    return source, target, editable


def _spans(row: Row) -> Iterator[tuple[bool, list[int]]]:
    """(to be learned, tokens) of the runs of equal kind, from left to right."""
    kinds, begin = bytes(row.learned), 0
    while begin < len(kinds):
        end = kinds.find(not kinds[begin], begin)
        end = len(kinds) if end < 0 else end
        yield bool(kinds[begin]), row.tokens[begin:end]
        begin = end
