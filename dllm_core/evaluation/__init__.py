"""Evaluation: likelihoods of given texts. Names are fetched on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_core.evaluation.bridge import DiffusionLM
    from dllm_core.evaluation.estimates import Estimate, LikelihoodOptions, estimate
    from dllm_core.evaluation.likelihood import are_greedy, draw_noise, is_greedy, loglikelihood, masked_loglikelihood

_HOMES = {
    "DiffusionLM": "bridge",
    "Estimate": "estimates",
    "LikelihoodOptions": "estimates",
    "are_greedy": "likelihood",
    "draw_noise": "likelihood",
    "estimate": "estimates",
    "is_greedy": "likelihood",
    "loglikelihood": "likelihood",
    "masked_loglikelihood": "likelihood",
}
__all__ = [
    "DiffusionLM",
    "Estimate",
    "LikelihoodOptions",
    "are_greedy",
    "draw_noise",
    "estimate",
    "is_greedy",
    "loglikelihood",
    "masked_loglikelihood",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dllm_core.evaluation.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
