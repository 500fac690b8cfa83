"""Traces: what a run changed at which step, small enough to keep and complete enough to replay without the model.

The file is a NumPy archive (``.npz``, compressed, no pickles): ``header``, UTF-8 JSON as bytes, and one entry per
change of the canvas in `COLUMNS`. What one step changed happened at once: all positions count in the canvas before it.

Shapes: B rows, L canvas length, N changes.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from dllm_core.errors import DataError

FORMAT = "dllm-trace"
VERSION = 2
# The kinds of changes: token written at position; inserted behind it (-1: in front of all); the token there deleted;
# the row cut or filled with masks until it is ``token`` positions long.
WRITTEN, INSERTED, DELETED, LENGTH = range(4)
# Changes are sorted by row, then by step, so the first columns compress to almost nothing.
COLUMNS = {
    "row": np.uint16,
    "step": np.uint32,
    "block": np.uint16,
    "kind": np.uint8,
    "position": np.int32,
    "token": np.int32,
    "confidence": np.float16,
}


@dataclass(frozen=True)
class TraceRow:
    """One row of a trace.

    Args:
        caption: its prompt; empty for a text with blanks.
        start: the first position that is shown: where the completion begins, 0 for a text with blanks.
        steps: how many steps its run took.
        ids: the canvas before the first step.
        text: the result, as the run printed it.
        pieces: (start, stop, text) of the result's tokens; joined they are its text before any cut inside a token.
    """

    caption: str
    start: int
    steps: int
    ids: list[int]
    text: str
    pieces: list[tuple[int, int, str]]


@dataclass(frozen=True)
class Change:
    """What one step did to one row: position ``positions[i]`` now holds ``tokens[i]``.

    ``confidence`` is nan where the step proposed nothing, for instance where a sampler masked a token again.
    ``length`` comes first; every position counts behind that and before all else.
    """

    step: int
    block: int
    positions: list[int]
    tokens: list[int]
    confidence: list[float]
    length: int | None = None
    inserted: list[tuple[int, int]] = field(default_factory=list)  # (position that it stands behind, token)
    deleted: list[int] = field(default_factory=list)


class Frame(NamedTuple):
    """The canvas behind a change.

    Args:
        ids: its tokens.
        writers: of each, the number of the change that wrote it; None: it was there before the first step.
    """

    change: Change
    ids: list[int]
    writers: list[int | None]


@dataclass(frozen=True)
class Trace:
    """A recorded run.

    Args:
        about: model, sampler, seed and options.
        mask_id: the token of positions that are not written.
        special_ids: tokens that the text leaves out.
        vocabulary: token id -> its text alone, for every token that ever stood on a canvas.
        rows: one an answer.
        columns: the changes, one array a column, each (N,).
    """

    about: Mapping[str, Any]
    mask_id: int
    special_ids: list[int]
    vocabulary: dict[int, str]
    rows: list[TraceRow]
    columns: dict[str, np.ndarray] = field(repr=False)

    def changes(self, row: int) -> Iterator[Change]:
        """The changes of a row, step after step."""
        own = self.columns["row"] == row
        lists = [self.columns[name][own].tolist() for name in COLUMNS if name != "row"]
        for (step, block), entries in groupby(zip(*lists, strict=True), key=lambda entry: entry[:2]):
            yield _change(step, block, [entry[2:] for entry in entries])

    def frames(self, row: int) -> Iterator[Frame]:
        """Each change of a row with the canvas that it leaves."""
        ids: list[int] = list(self.rows[row].ids)
        writers: list[int | None] = [None] * len(ids)
        for number, change in enumerate(self.changes(row)):
            length = len(ids) if change.length is None else change.length
            ids = ids[:length] + [self.mask_id] * (length - len(ids))
            writers = writers[:length] + [None] * (length - len(writers))
            for position, token in zip(change.positions, change.tokens, strict=True):
                ids[position], writers[position] = token, number
            if change.inserted or change.deleted:
                ids = _moved(ids, change, [token for _, token in change.inserted])
                writers = _moved(writers, change, [number] * len(change.inserted))
            yield Frame(change, ids, writers)


T = TypeVar("T")


def _moved(values: Sequence[T], change: Change, new: Sequence[T]) -> list[T]:
    """What belongs to each token, behind the deletions of a change and its insertions, to which `new` belongs."""
    gone, behind = set(change.deleted), defaultdict(list)
    for (position, _), value in zip(change.inserted, new, strict=True):
        behind[position].append(value)
    after = list(behind[-1])
    for place, value in enumerate(values):
        after += [*([] if place in gone else [value]), *behind[place]]
    return after


def _change(step: int, block: int, entries: Sequence[tuple[int, int, int, float]]) -> Change:
    """The change of its entries: (kind, position, token, confidence)."""
    kinds: dict[int, list[tuple[int, int, float]]] = {
        kind: [entry[1:] for entry in entries if entry[0] == kind] for kind in (WRITTEN, INSERTED, DELETED, LENGTH)
    }
    return Change(
        step,
        block,
        *([entry[column] for entry in kinds[WRITTEN]] for column in range(3)),
        length=next((token for _, token, _ in kinds[LENGTH]), None),
        inserted=[(position, token) for position, token, _ in kinds[INSERTED]],
        deleted=[position for position, _, _ in kinds[DELETED]],
    )


def write_trace(trace: Trace, file: IO[bytes]) -> None:
    """Write a trace to an open binary file."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "about": dict(trace.about),
        "mask_id": trace.mask_id,
        "special_ids": trace.special_ids,
        "vocabulary": {str(token): text for token, text in trace.vocabulary.items()},
        "rows": [asdict(row) for row in trace.rows],
    }
    encoded = json.dumps(header, ensure_ascii=False, default=str).encode("utf-8", errors="replace")
    np.savez_compressed(file, header=np.frombuffer(encoded, dtype=np.uint8), **trace.columns)


# What a file that is none, or that was cut or changed, makes of reading it.
NOT_A_TRACE = (
    *(ValueError, KeyError, AttributeError, TypeError, IndexError, EOFError, NotImplementedError, struct.error),
    *(zipfile.BadZipFile, zlib.error, OverflowError),
)


def read_trace(path: Path) -> Trace:
    """Read a trace.

    Raises:
        DataError: the file cannot be read, is no trace, or is one of a later version.
    """
    advice = "write one with dllm run --trace FILE"
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            columns = {name: archive[name] for name in COLUMNS if header.get("version") == VERSION}
    except OSError as error:
        raise DataError(f"cannot read the trace {path}: {error.strerror or error}; {advice}") from error
    except NOT_A_TRACE as error:
        raise DataError(f"{path} is not a trace, or is damaged; {advice}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(f"{path} is not a trace; {advice}")
    found = header.get("version")
    if found != VERSION:
        cure = "update dllm-core" if isinstance(found, int) and found > VERSION else "record it again"
        raise DataError(f"{path} is a trace of version {found}, this dllm reads {VERSION}; {cure}")
    try:
        trace = _from_header(header, columns)
        for row in range(len(trace.rows)):
            deque(trace.frames(row), maxlen=0)  # what cannot be replayed is found here and not in the midst of a page
    except NOT_A_TRACE as error:
        raise DataError(f"{path} is damaged: its changes do not fit its canvas; record it again") from error
    return trace


def _from_header(header: Mapping[str, Any], columns: dict[str, np.ndarray]) -> Trace:
    return Trace(
        about=header["about"],
        mask_id=header["mask_id"],
        special_ids=header["special_ids"],
        vocabulary={int(token): text for token, text in header["vocabulary"].items()},
        rows=[TraceRow(**row | {"pieces": [tuple(piece) for piece in row["pieces"]]}) for row in header["rows"]],
        columns=columns,
    )
