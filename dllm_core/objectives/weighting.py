"""How much each hidden token's cross-entropy counts, by name.

Shapes: B batch, L length.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

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


def context_weights(masked: Tensor, p: float) -> Tensor:
    """CART: the nearer the visible tokens, the more a hidden one counts; 0 for visible tokens. (B, L) float32

    Hidden position i weighs the sum over visible j of ``0.5 p (1 - p)^(|i - j| - 1)``. Padding counts as visible, as
    upstream. A packed row is taken as one text: tokens of the neighbouring documents count too.
    Source: Ye et al., "Dream 7B", arXiv:2508.15487, context-adaptive token-level noise rescheduling;
    and the source ZHZisZZ/dllm at ca17675, dllm/pipelines/dream/trainer.py, whose figures are reproduced.

    Args:
        masked: (B, L) bool, True = hidden.
        p: parameter of the geometric distribution, above 0 and below 1; low looks far.
    """
    places = torch.arange(masked.shape[1], device=masked.device)
    distance = (places[:, None] - places).abs()  # (L, L)
    # The diagonal is never used (a hidden token is not visible to itself): clamping keeps the exponent in range.
    kernel = 0.5 * p * (1 - p) ** (distance.clamp(min=1) - 1).float()
    return (~masked).float() @ kernel * masked


def cart_weights(schedule: Schedule, corruption: Corruption, *, p: float = 0.3) -> Tensor:
    """``context_weights`` of what the corruption hides, whatever the diffusion time. (B, L)"""
    return context_weights(corruption.masked, p)


_WEIGHTINGS: dict[str, Weighting] = {
    "schedule": schedule_weights,
    "uniform": uniform_weights,
    "cart": cart_weights,
}
_CART = re.compile(r"cart\[p:([^\]]*)\]")


def register_weighting(name: str, weighting: Weighting) -> None:
    """Make a weighting available by name to every masked objective of this process.

    Raises:
        OptionError: the name is taken by another function.
    """
    if _WEIGHTINGS.setdefault(name, weighting) is not weighting:
        raise OptionError(f"weighting {name!r} is already registered; register under another name")


def get_weighting(name: str) -> Weighting:
    """The weighting of that name; ``cart[p:0.1]`` is ``cart`` with another parameter than 0.3.

    Raises:
        OptionError: there is none; the message names the nearest. Or p is out of range.
    """
    if given := _CART.fullmatch(name):
        return partial(cart_weights, p=_probability(given[1]))
    one_of("weighting", name, _WEIGHTINGS)
    return _WEIGHTINGS[name]


def _probability(text: str) -> float:
    """p of ``cart[p:...]``, above 0 and below 1."""
    try:
        p = float(text)
    except ValueError:
        p = 0.0  # the same answer as to a number out of range
    if not 0 < p < 1:
        raise OptionError(f"p of weighting cart must be above 0 and below 1, got {text!r}; usual is cart[p:0.3]")
    return p
