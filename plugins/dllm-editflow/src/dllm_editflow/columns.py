"""From a row of columns to what a model sees and what it still has to do: all rows at once, by cumulative sums.

A column belongs to the row of its own token, or, where it shows none, to that of the nearest token on its left: an
insertion stands behind it. One running count gives both.

Shapes: B batch, N columns, L tokens of the longest row, E edits, S substitutions, I insertions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm_editflow.kinds import DELETE, INSERT, SUBSTITUTE


class Shown(NamedTuple):
    """What the columns show.

    Args:
        input_ids: (B, L) int64, without blanks, filled up on the right.
        attention_mask: (B, L) bool, True = a token.
        rows: (B, N) int64, the token that each column belongs to.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor


class Remaining(NamedTuple):
    """The edits that lead from what is shown to the target.

    Args:
        counts: (B, L, 3) float32, edits of each kind at each token, each as heavy as its column.
        substitutions: (B, L) bool; their targets (S,) and weights (S,) follow in row-major order.
        insertions: (I, 2) int64 row and token behind which; their targets (I,) and weights (I,).
    """

    counts: Tensor
    substitutions: Tensor
    substitution_targets: Tensor
    substitution_weights: Tensor
    insertions: Tensor
    insertion_targets: Tensor
    insertion_weights: Tensor


def show(columns: Tensor, filler: int) -> Shown:
    """Strip the blanks. Every row must begin with a token.

    Args:
        columns: (B, N) int64, tokens, `BLANK`, and `COLUMN_PADDING` behind the end.
        filler: the token to fill up with.
    """
    is_token = columns >= 0  # (B, N)
    rows = is_token.cumsum(1) - 1  # (B, N)
    lengths = rows[:, -1] + 1  # (B,)
    width = int(lengths.max())
    # What shows no token is written to a place behind the end, which is cut off.
    places = rows.where(is_token, width)
    ids = columns.new_full((len(columns), width + 1), filler).scatter_(1, places, columns)[:, :width]
    return Shown(ids.contiguous(), torch.arange(width, device=columns.device) < lengths[:, None], rows)


def remaining(columns: Tensor, target: Tensor, shown: Shown, weights: Tensor | None = None) -> Remaining:
    """The edits that are still to be made.

    Args:
        columns, target: (B, N) int64, what is shown now and in the end.
        shown: of `columns`.
        weights: (B, N) float above 0, what each column counts; None: 1.
    """
    batch, length = shown.input_ids.shape
    places = (columns != target).flatten().nonzero()[:, 0]  # (E,) all edits, in row-major order
    now, then, row = (each.flatten()[places] for each in (columns, target, shown.rows))  # (E,)
    weight = torch.ones(len(places), device=now.device) if weights is None else weights.flatten()[places]  # (E,)
    kind = torch.where(now < 0, INSERT, torch.where(then < 0, DELETE, SUBSTITUTE))  # (E,)
    text = places // columns.shape[1]  # (E,)
    counts = weight.new_zeros(batch * length * 3).index_add_(0, (text * length + row) * 3 + kind, weight)
    counts = counts.view(batch, length, 3)
    substitute, insert = ((kind == each).nonzero()[:, 0] for each in (SUBSTITUTE, INSERT))  # (S,), (I,)
    return Remaining(
        counts=counts,
        substitutions=counts[..., SUBSTITUTE] > 0,
        substitution_targets=then[substitute],
        substitution_weights=weight[substitute],
        insertions=torch.stack([text[insert], row[insert]], 1),
        insertion_targets=then[insert],
        insertion_weights=weight[insert],
    )


class Editable(NamedTuple):
    """Where edits are allowed: tokens that may go (B, L) bool, and tokens behind which something may be put (B, L)."""

    tokens: Tensor
    gaps: Tensor


def editable_rows(editable: Tensor, columns: Tensor, shown: Shown) -> Editable:
    """What training and sampling both allow, at the tokens that are shown.

    A token may be substituted or deleted where its column is editable. Behind a token something may be inserted where
    its own column is, or the one that follows: an editable span begins right behind it.

    Args:
        editable: (B, N) bool, the columns that may change.
    """
    follows = torch.nn.functional.pad(editable[:, 1:], (0, 1))  # (B, N)
    is_token, rows = columns >= 0, shown.rows.clamp(min=0)
    marks = [(is_token & where).long() for where in (editable, editable | follows)]
    return Editable(*(torch.zeros_like(shown.input_ids).scatter_add_(1, rows, mark).bool() for mark in marks))
