"""What a step shows a cache policy: the canvas, where each row's block stands, and who may look at whom.

Where rows and blocks begin and end is known on the host, so that a policy can plan without asking the device.

Shapes: R rows, W canvas width, M open positions, Q query positions, K key positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from dllm_core.models.attention import FLEX
from dllm_core.models.denoiser import Denoiser

FULL, BLOCK_CAUSAL = "full", "block_causal"  # who may look at whom: everyone; or blocks at themselves and the earlier


@dataclass(frozen=True)
class Layout:
    """The rows while one block is being written; guided runs hold every row twice, the unconditional half behind.

    Args:
        starts, stops: each row's block is ``[start, stop)``, empty where the row has none left.
        lengths: tokens of each row, masks included.
        block_size: of the grid.
        attention: ``"full"`` or ``"block_causal"``.
        masks: how many masks each row's block held before its first step; 0 where it is only waited for.
        reaches: where a suffix window hides masks: each row's ``[0, reach)`` and its last position are all there is.
            Elsewhere the lengths.
        origins: (R,) int64, where each row's grid begins; blocks in front of it count below 0.
        ends: (R,) int64, the lengths.
        attention_mask: (R, W) bool, or None where all positions are real.
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    lengths: tuple[int, ...]
    block_size: int
    attention: str
    masks: tuple[int, ...]
    reaches: tuple[int, ...]
    origins: torch.Tensor
    ends: torch.Tensor
    attention_mask: torch.Tensor | None
    guided: bool = False

    @property
    def hides(self) -> bool:
        """Whether a suffix window leaves positions out."""
        return self.reaches != self.lengths

    def pattern(self, queries: torch.Tensor, keys: int) -> torch.Tensor:
        """Who may look at whom among the first ``keys`` positions.

        Args:
            queries: (R, Q) int64 positions, each of a real token.
            keys: K.

        Returns:
            (R, 1, Q, K) bool.
        """
        columns = torch.arange(keys, device=queries.device)
        allowed = self.there(columns)[:, None]  # (R, 1, K)
        if self.attention == BLOCK_CAUSAL:
            # A position looks at all that stands before the end of its own block.
            block = (queries - self.origins[:, None]).div(self.block_size, rounding_mode="floor")
            stop = self.origins[:, None] + (block + 1) * self.block_size  # (R, Q)
            allowed = allowed & (columns < stop[..., None])  # (R, Q, K)
        return allowed.expand(-1, queries.shape[1], -1)[:, None]

    def there(self, columns: torch.Tensor) -> torch.Tensor:
        """Which of the columns (K,) a row has, outside those that its window hides. -> (R, K) bool"""
        ends = self.ends[:, None]
        if not self.hides:
            return columns < ends
        reach = torch.tensor(self.reaches, device=columns.device)[:, None]
        return (columns < reach) | (columns == ends - 1)

    def shown(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The positions below ``width`` that a suffix window leaves, side by side; shorter rows repeat their last one.

        Returns:
            Positions (R, Q) int64 and which of them are no repetition (R, Q) bool.
        """
        rows = zip(self.reaches, self.lengths, strict=True)
        spans = [(min(reach, width), length - 1, reach < length <= width) for reach, length in rows]
        ends, lasts, has_tail = torch.tensor(spans, device=self.ends.device).T[..., None]  # (R, 1) each
        columns = torch.arange(max(end + tail for end, _, tail in spans), device=self.ends.device)  # (Q,)
        behind = torch.where(has_tail > 0, lasts, ends - 1)
        return torch.where(columns < ends, columns, behind), columns < ends + has_tail

    def twice(self) -> Layout:
        """The rows of a guided run."""
        mask = None if self.attention_mask is None else self.attention_mask.repeat(2, 1)
        return Layout(
            self.starts * 2,
            self.stops * 2,
            self.lengths * 2,
            self.block_size,
            self.attention,
            self.masks * 2,
            self.reaches * 2,
            self.origins.repeat(2),
            self.ends.repeat(2),
            mask,
            guided=True,
        )


def in_the_models_form(pattern: torch.Tensor, denoiser: Denoiser) -> torch.Tensor | BlockMask:
    """A pattern (R, 1, Q, K) as `Denoiser.logits` takes it: flex attention reads no dense mask."""
    if denoiser.bare_model.config._attn_implementation != FLEX:
        return pattern
    rows, _, queries, keys = pattern.shape

    def allowed(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return pattern[row, 0, query, key]

    return create_block_mask(allowed, rows, None, queries, keys, device=pattern.device)


class Answer(NamedTuple):
    """What a policy gives back for a step.

    Args:
        logits: (R, M, V) at the open positions.
        positions: positions that went through the model for it, padding included.
        logit_rows: positions that were projected through the vocabulary head.
        forward_passes: calls of the model.
        host_syncs: questions that the policy asked the device.
    """

    logits: torch.Tensor
    positions: int
    logit_rows: int
    forward_passes: int = 1
    host_syncs: int = 0


@dataclass(frozen=True)
class View:
    """One step.

    Args:
        layout: the same object for all steps of a block.
        step: of the block, from 0; at step 0 the block has just been opened.
        input_ids: (R, W) int64, the canvas; not to be written.
        at: (R, M) int64, the open positions; rows with fewer than others are filled up with any position.
    """

    layout: Layout
    step: int
    input_ids: torch.Tensor
    at: torch.Tensor

    def computed_anew(self, denoiser: Denoiser, width: int | None = None) -> Answer:
        """One forward over the first ``width`` columns, nothing kept: the exact answer.

        Args:
            width: None: as far as anything is visible, which under block-causal attention is the end of the block.
        """
        layout = self.layout
        if layout.hides:
            return self._shown_anew(denoiser, self.input_ids.shape[1] if width is None else width)
        if width is None:
            width = max(layout.stops) if layout.attention == BLOCK_CAUSAL else self.input_ids.shape[1]
        ids, mask = self.input_ids[:, :width], layout.attention_mask
        at = self.at.clamp(max=width - 1)  # only filler lies behind
        if layout.attention == BLOCK_CAUSAL:
            columns = torch.arange(width, device=ids.device).minimum(layout.ends[:, None] - 1)  # (R, W)
            pattern = in_the_models_form(layout.pattern(columns, width), denoiser)
            logits = denoiser.logits(ids, at=at, attention=pattern)
        else:
            logits = denoiser.logits(ids, None if mask is None else mask[:, :width], at=at)
        return Answer(logits, ids.numel(), at.numel())

    def _shown_anew(self, denoiser: Denoiser, width: int) -> Answer:
        positions, real = self.layout.shown(width)
        at = self.at.clamp(max=positions.shape[1] - 1)  # in front of the reach, columns are positions
        even = len(set(self.layout.reaches)) == 1 and len(set(self.layout.lengths)) == 1
        ids, mask = self.input_ids.gather(1, positions), None if even else real
        logits = denoiser.logits(ids, mask, at=at, position_ids=positions)
        return Answer(logits, ids.numel(), at.numel())
