"""Commit one position of every gap, so that what is written stands far apart.

Shapes: B rows, M open positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm_core.config import within
from dllm_core.errors import OptionError
from dllm_core.samplers import CommitRule, Proposal


@dataclass(frozen=True, kw_only=True)
class Hierarchical(CommitRule):
    """The surest position of every run of neighbouring masks, all that is sure enough, and the surest of all.

    Divide and conquer: tokens in the middle of different gaps depend on each other less than neighbours do.

    Args:
        low_threshold: the surest position of a run is written above this confidence, from 0 to ``threshold``.
        threshold: any position is written above this confidence, from 0 to 1.

    Raises:
        OptionError: a threshold outside [0, 1], or ``low_threshold`` above ``threshold``.

    Source: dInfer, arXiv:2510.08666, hierarchical decoding.
    """

    needs: ClassVar[tuple[str, ...]] = ("places",)
    low_threshold: float = 0.4
    threshold: float = 0.9

    def __post_init__(self) -> None:
        within("threshold", self.threshold, 0.0, 1.0)
        within("low_threshold", self.low_threshold, 0.0, 1.0)
        if self.low_threshold > self.threshold:
            raise OptionError(
                f"low_threshold={self.low_threshold} is above threshold={self.threshold}; it must be at most that, "
                "because what is sure enough anywhere is sure enough in its run"
            )

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        confidence = proposal.confidence.masked_fill(~masked, -torch.inf)
        run = runs(proposal.places, masked)
        heads = leaders(confidence, run, masked) & (confidence > self.low_threshold)
        surest = leaders(confidence, torch.zeros_like(run), masked)
        return (heads | surest | (confidence > self.threshold)) & masked


def runs(places: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """The number of the run of neighbouring masks that each position belongs to, from 0; filler belongs to any.

    Args:
        places: (B, M) int64, in any order.
        masked: (B, M) bool.

    Returns:
        (B, M) int64, at most M - 1.
    """
    line = places.masked_fill(~masked, places.shape[1] + torch.iinfo(torch.int32).max)  # filler behind all
    ordered, order = line.sort(dim=1, stable=True)
    begins = torch.ones_like(masked)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1] + 1
    return torch.zeros_like(places).scatter(1, order, begins.cumsum(1) - 1)


def leaders(confidence: torch.Tensor, run: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """The surest masked position of each run, the left one of equals. -> (B, M) bool

    Args:
        confidence: (B, M), -inf at filler.
        run: (B, M) int64, the run of each position.
        masked: (B, M) bool.
    """
    width = confidence.shape[1]
    column = torch.arange(width, device=run.device).expand_as(run)
    best = torch.full_like(confidence, -torch.inf).scatter_reduce(1, run, confidence, "amax").gather(1, run)
    is_best = masked & (confidence == best)
    first = torch.full_like(run, width).scatter_reduce(1, run, column.where(is_best, width), "amin").gather(1, run)
    return is_best & (column == first)
