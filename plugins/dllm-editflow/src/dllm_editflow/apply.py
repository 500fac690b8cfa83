"""Make the edits of a step in all rows at once: two places for every token, one running count, one scatter.

Every token owns two places of the new text, in order: its own, where it stays, is substituted or leaves a hole, and the
one behind it, where a token may be inserted. A running count over what is there gives each its new position.

Shapes: R rows, L tokens, W tokens after the step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm_editflow.kinds import DELETE, INSERT, SUBSTITUTE
from dllm_editflow.operations import INSERTED

KEPT = -1  # among the kinds: nothing happened to this token


class Rows(NamedTuple):
    """Texts under way.

    Args:
        input_ids: (R, L) int64, filled up on the right.
        lengths: (R,) int64.
        locked: (R, L) bool, tokens that are never substituted nor deleted.
        gaps: (R, L) bool, tokens behind which something may be inserted.
        source: (R, L) int64, where each token stood in the draft, -1 for those that it did not have.
    """

    input_ids: Tensor
    lengths: Tensor
    locked: Tensor
    gaps: Tensor
    source: Tensor

    @property
    def real(self) -> Tensor:
        """(R, L) bool: False behind the end of a row."""
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device) < self.lengths[:, None]


class Edits(NamedTuple):
    """What happens to each token, and behind it.

    Args:
        change: (R, L) int64, `KEPT`, `SUBSTITUTE` or `DELETE`.
        insert: (R, L) bool.
        tokens: (R, L, 2) int64, what each is substituted by, and what is inserted behind it; anything elsewhere.
        surety: (R, L, 2) float32, how sure of that the model was; nan elsewhere.
    """

    change: Tensor
    insert: Tensor
    tokens: Tensor
    surety: Tensor


class Applied(NamedTuple):
    """The rows after a step, and what happened to the tokens that are there now.

    Args:
        rows: of W tokens.
        kinds: (R, W) int64, `KEPT`, `SUBSTITUTE` or `INSERT`.
        surety: (R, W) float32, how sure the model was; nan for tokens that were kept.
    """

    rows: Rows
    kinds: Tensor
    surety: Tensor


def apply_edits(rows: Rows, edits: Edits, width: int, filler: int) -> Applied:
    """The rows after the edits.

    Inserted tokens are free, and something may be inserted behind them. A substituted token keeps its place in the
    draft.

    Args:
        width: W, at least the length of the longest row after the edits; known to the caller, so that nobody asks the
            device for it.
        filler: the token behind the end of a row.
    """
    here = rows.real
    substitute = edits.change == SUBSTITUTE
    insert = edits.insert & here
    present = _places(here & (edits.change != DELETE), insert)  # (R, 2L)
    behind = present.long().cumsum(1)
    targets = (behind - 1).where(present, width)  # what is not there goes to a column that is cut off

    def moved(own: Tensor, inserted: Tensor | int | bool, empty: float) -> Tensor:
        inserted = inserted if isinstance(inserted, Tensor) else torch.full_like(own, inserted)
        out = own.new_full((len(own), width + 1), empty)
        return out.scatter_(1, targets, _places(own, inserted))[:, :width]  # (R, W)

    after = Rows(
        input_ids=moved(rows.input_ids.where(~substitute, edits.tokens[..., 0]), edits.tokens[..., 1], filler),
        lengths=behind[:, -1],
        locked=moved(rows.locked, False, True),
        gaps=moved(rows.gaps, True, False),
        source=moved(rows.source, INSERTED, INSERTED),
    )
    surety = moved(*edits.surety.unbind(-1), torch.nan)
    return Applied(after, moved(edits.change, INSERT, KEPT), surety)


def _places(own: Tensor, behind: Tensor) -> Tensor:
    """(R, L) and (R, L) -> (R, 2L), alternating."""
    return torch.stack([own, behind], -1).flatten(1)
