"""How much each hidden token's cross-entropy counts, by name.

Shapes: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dllm_core.config import one_of
from dllm_core.errors import OptionError
from dllm_core.noise.corruption import Corruption, per_token
from dllm_core.noise.schedules import Schedule

Weighting = Callable[[Schedule, Corruption], Tensor]
"""Weights that broadcast to (B, L), from the schedule and the corruption."""


def schedule_weights(schedule: Schedule, corruption: Corruption) -> Tensor:
    """-alpha'(t) / (1 - alpha(t)): with these the expected loss is the bound on -log p. (B, 1) or (B, L)

    Source: Sahoo et al., arXiv:2406.07524, equation 10.
    """
    return per_token(schedule.weight(corruption.time))


def uniform_weights(schedule: Schedule, corruption: Corruption) -> Tensor:
    """1 for every hidden token: no bound, but less variance. (B, 1) or (B, L)"""
    return per_token(torch.ones_like(corruption.time))


_WEIGHTINGS: dict[str, Weighting] = {"schedule": schedule_weights, "uniform": uniform_weights}


def register_weighting(name: str, weighting: Weighting) -> None:
    """Make a weighting available by name to every masked objective of this process.

    Raises:
        OptionError: the name is taken by another function.
    """
    if _WEIGHTINGS.setdefault(name, weighting) is not weighting:
        raise OptionError(f"weighting {name!r} is already registered; register under another name")


def get_weighting(name: str) -> Weighting:
    """The weighting of that name.

    Raises:
        OptionError: there is none; the message names the nearest.
    """
    one_of("weighting", name, _WEIGHTINGS)
    return _WEIGHTINGS[name]
