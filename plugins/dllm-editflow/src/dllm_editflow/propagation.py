"""Localized propagation: columns turn to their target on their own, and then pull their neighbours along.

Each of N independent rows of M starts at its own column, at the rate kappa' / (1 - kappa), and spreads to both sides at
a constant rate. A column shows its target once any row has reached it. Edits then come in runs, as words do.

Source: Havasi et al., arXiv:2506.09018, appendix C.1. Which columns take part is open there, where every column is an
insertion; here it is those that are edits, and kept tokens between them are no distance.

Shapes: B batch, N columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm_editflow.kappa import KappaSchedule


class Spread(NamedTuple):
    """(B, N) bool: the columns that show their target; (B, N) float: the rate at which the others turn."""

    turned: Tensor
    rates: Tensor


def spread(
    taking_part: Tensor, time: Tensor, draws: Tensor, kappa: KappaSchedule, rate: float, generator: torch.Generator
) -> Spread:
    """Where the columns stand at a time.

    Args:
        taking_part: (B, N) bool, the columns that are edits.
        time: (B,) float.
        draws: (B, N) uniform, one a column: it turns on its own at the time kappa^-1(draw).
        rate: per side and unit of time, at which a column that has turned pulls the next.
    """
    starts = taking_part & (draws < kappa.kappa(time)[:, None])  # (B, N)
    reach = rate * (time[:, None] - kappa.inverse(draws)).clamp(min=0)
    left, right = (torch.poisson(reach, generator=generator).long() for _ in range(2))  # (B, N)
    order = (taking_part.long().cumsum(1) - 1).clamp(min=0)  # (B, N) its number among those that take part
    count = taking_part.sum(1, keepdim=True)  # (B, 1)
    first = (order - left).clamp(min=0)
    last = torch.minimum(order + right, count - 1).clamp(min=0)
    turned, ends_before, begins_behind = _covered(starts, first, last)
    pulled = ends_before + begins_behind  # how many rows have an end right beside each
    own = kappa.weight(time)[:, None]
    rates = own + rate * pulled.gather(1, order)
    return Spread(turned.gather(1, order) & taking_part, rates)


def _covered(starts: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By number among those that take part: reached by any row; rows that end right before it; that begin behind it."""
    begins, ends = (
        torch.zeros(len(starts), starts.shape[1] + 2, device=starts.device).scatter_add_(1, where, starts.float())
        for where in (first, last + 1)
    )
    depth = (begins - ends).cumsum(1)[:, : starts.shape[1]]
    return depth > 0, ends[:, : starts.shape[1]], begins[:, 1 : starts.shape[1] + 1]
