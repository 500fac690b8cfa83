"""The canvas: rows of given and masked tokens, and the grid of blocks over each row.

Everything that the loop must know about shapes (lengths, blocks, masks in a block) is kept as Python numbers, so that
no step has to ask the device for it.

Shapes: B rows, L canvas length, K block size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch


@dataclass(frozen=True)
class Canvas:
    """Rows before the first step.

    Args:
        rows: token ids of each row, mask tokens where text is to come.
        prompt_lengths: tokens of each row that were given in front.
        origins: where each row's blocks are counted from: the prompt's end, or the boundary before it, for
            completions; 0 for infilling.
        block_size: K; the last block of a row may be shorter.
        mask_token_id: the id that stands for a mask.
        completes: the masks are a completion that an end of sequence may end early.
        wanted: how many tokens of each row are handed out, where the canvas has more; empty: all.
    """

    rows: tuple[tuple[int, ...], ...]
    prompt_lengths: tuple[int, ...]
    origins: tuple[int, ...]
    block_size: int
    mask_token_id: int
    completes: bool
    wanted: tuple[int, ...] = ()

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(row) for row in self.rows)

    @property
    def shown(self) -> tuple[int, ...]:
        """Tokens of each row that are handed out."""
        return self.wanted or self.lengths

    def blocks(self, row: int) -> int:
        """How many blocks that row has."""
        return -(-(len(self.rows[row]) - self.origins[row]) // self.block_size)

    def span(self, row: int, block: int) -> tuple[int, int]:
        """First position of a row's block and the one after its last; empty where the row has no such block."""
        start = self.origins[row] + block * self.block_size
        length = len(self.rows[row])
        return min(start, length), min(start + self.block_size, length)

    def masks(self, row: int, block: int) -> int:
        """How many masks that block holds before the first step."""
        start, stop = self.span(row, block)
        return self.rows[row][start:stop].count(self.mask_token_id)

    def has_masks_from(self, row: int, block: int) -> bool:
        """Whether that block of a row, or one after it, holds masks before the first step."""
        start, _ = self.span(row, block)
        return self.mask_token_id in self.rows[row][start:]

    def cut(self, values: torch.Tensor, filler: object) -> torch.Tensor:
        """What is handed out of (B, L) values, as wide as the longest row of that; filler behind. -> (B, L')"""
        if not self.wanted:
            return values
        ends = torch.tensor(self.wanted, device=values.device)[:, None]
        values = values[:, : max(self.wanted)]
        return values.masked_fill(torch.arange(values.shape[1], device=values.device) >= ends, filler)

    def tensor(self, pad_token_id: int, device: torch.device) -> torch.Tensor:
        """The rows side by side, padded on the right. -> (B, L) int64"""
        width = max(self.lengths)
        padded = [list(row) + [pad_token_id] * (width - len(row)) for row in self.rows]
        return torch.tensor(padded, dtype=torch.int64, device=device)


def completion_canvas(
    prompts: Sequence[Sequence[int]],
    new_tokens: Sequence[int],
    block_size: int | None,
    mask_token_id: int,
    grid: str = "completion",
) -> Canvas:
    """Each prompt followed by its number of masks.

    Args:
        grid: ``completion``: blocks count from the prompt's end. ``absolute``: a row's blocks begin at the multiples
            of ``block_size``, so its first one may hold the prompt's tail.
    """
    rows = tuple(tuple(p) + (mask_token_id,) * n for p, n in zip(prompts, new_tokens, strict=True))
    prompt_lengths = tuple(len(p) for p in prompts)
    size = block_size or max(new_tokens if grid == "completion" else map(len, rows))
    origins = tuple(n if grid == "completion" else n // size * size for n in prompt_lengths)
    return Canvas(rows, prompt_lengths, origins, size, mask_token_id, completes=True)


def infill_canvas(canvases: Sequence[Sequence[int]], block_size: int | None, mask_token_id: int) -> Canvas:
    """Given texts with masks anywhere; blocks count from position 0."""
    rows = tuple(tuple(row) for row in canvases)
    zeros = (0,) * len(rows)
    return Canvas(rows, zeros, zeros, block_size or max(map(len, rows)), mask_token_id, completes=False)


def with_whole_blocks(canvas: Canvas, limit: int | None) -> Canvas:
    """The canvas with masks up to the end of each row's last block, or up to ``limit``; they are not handed out."""
    filled = []
    for row, origin in zip(canvas.rows, canvas.origins, strict=True):
        stop = len(row) + (origin - len(row)) % canvas.block_size
        stop = stop if limit is None else max(len(row), min(stop, limit))
        filled.append(row + (canvas.mask_token_id,) * (stop - len(row)))
    return replace(canvas, rows=tuple(filled), wanted=canvas.lengths)


def row_mask(lengths: Sequence[int], device: torch.device) -> torch.Tensor | None:
    """Which positions are real tokens; None where all are, which spares the model a mask. -> (B, L) bool"""
    if len(set(lengths)) == 1:
        return None
    ends = torch.tensor(lengths, device=device)[:, None]
    return torch.arange(max(lengths), device=device) < ends
