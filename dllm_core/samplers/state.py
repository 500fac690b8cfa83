"""What one run of a sampler carries from step to step.

Shapes: B rows, R rows still being written, L canvas length, W the longest of those rows, K block size, M open
positions, S steps of a block.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from dllm_core.samplers.cache import CacheRun
from dllm_core.samplers.canvas import Canvas
from dllm_core.samplers.output import SampleStats
from dllm_core.samplers.proposals import Proposal
from dllm_core.samplers.view import Layout


@dataclass
class Block:
    """The block that is being written, in every row that is not finished.

    Args:
        number: of the block, from 0.
        rows: (R,) int64, which rows of the canvas.
        layout: where each row's block stands, for the cache policy.
        positions: (R, K) int64 positions of the block, kept inside the canvas.
        valid: (R, K) bool, False behind the end of a row's block.
        quota: (R, S) int64, commits for each step.
        open_counts: for each step an upper bound, known on the host, of the masks that any row has left.
        step: the next step in the block.
        proposal: of the step that is being taken, for `Sampler.revise`; None before the first.
        history: what the commit rule keeps of the block's steps, row by row; it goes with the block.
    """

    number: int
    rows: torch.Tensor
    layout: Layout
    positions: torch.Tensor
    valid: torch.Tensor
    quota: torch.Tensor
    open_counts: list[int]
    step: int = 0
    proposal: Proposal | None = None
    history: object | None = None

    @property
    def step_quota(self) -> torch.Tensor:
        """This step's quota, 0 past the planned steps. -> (R,)"""
        if self.step < self.quota.shape[1]:
            return self.quota[:, self.step]
        return torch.zeros_like(self.quota[:, 0])


@dataclass
class SamplerState:
    """A run under way; `Sampler.step` moves it on.

    Args:
        canvas: the rows as they were at the start, and their block grid.
        input_ids: (B, L) int64, the rows now.
        hidden: (B, L) bool, given positions that the unconditional canvas of the guidance masks; None: no guidance.
        keys: (B,) int64, one noise key a row.
        active: the rows that are not finished.
        done: (B,) bool, the rows that are.
        cache: what the cache policy keeps of the active rows; guided runs hold them twice.
        block: the block being written; None before the first and after the last.
        next_block: number of the block after it.
        index: steps taken.
    """

    canvas: Canvas
    input_ids: torch.Tensor
    hidden: torch.Tensor | None
    keys: torch.Tensor
    active: list[int]
    done: torch.Tensor
    cache: CacheRun | None = None
    block: Block | None = None
    next_block: int = 0
    index: int = 0
    stats: SampleStats = field(default_factory=SampleStats)
    started: float = field(default_factory=time.perf_counter)

    @property
    def finished(self) -> bool:
        return self.block is None

    def told(self, answer: torch.Tensor) -> Any:
        """What the device has to say, as Python values; the host waits for it, which the counts of the run note."""
        self.stats.host_syncs += 1
        return answer.tolist()


class Open(NamedTuple):
    """Where a step proposes.

    Args:
        positions: (R, M) int64.
        masked: (R, M) bool, which of them are masks, for the commit rule to select from.
        shown: (R, M) bool, which of them the step reports a confidence of.
    """

    positions: torch.Tensor
    masked: torch.Tensor
    shown: torch.Tensor


class Considered(NamedTuple):
    """What a step has before it selects.

    Args:
        ids: (R, W) int64, the canvas that the proposal is for.
        open: where it proposes.
        proposal: what could be written there.
    """

    ids: torch.Tensor
    open: Open
    proposal: Proposal


class Places(Protocol):
    """Where a block stands: ``positions`` (R, K) int64 and ``valid`` (R, K) bool, as of `Block`."""

    positions: torch.Tensor
    valid: torch.Tensor


def open_positions(
    ids: torch.Tensor, block: Places, count: int, mask_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The masked positions of the block, left to right, filled up to `count` a row.

    Args:
        ids: (R, W) int64, the canvas.
        block: a `Block`, or anything with its positions.
        count: M, at least as many as any row has masks left in the block.

    Returns:
        Positions (R, M) int64 and whether each is a mask (R, M) bool.
    """
    masked = (ids.gather(1, block.positions) == mask_token_id) & block.valid  # (R, K)
    order = (~masked).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]  # (R, M)
    return block.positions.gather(1, order), masked.gather(1, order)


def spread(values: torch.Tensor, positions: torch.Tensor, chosen: torch.Tensor, width: int) -> torch.Tensor:
    """Lay the chosen values (R, M) out at their positions, 0 elsewhere. -> (R, W)

    Filler may share a position with a chosen value; it adds 0, so that the result does not depend on the order.
    """
    flat = torch.zeros(values.shape[0], width, dtype=values.dtype, device=values.device)
    return flat.scatter_add(1, positions, torch.where(chosen, values, torch.zeros_like(values)))
