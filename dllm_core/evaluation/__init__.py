"""Evaluation: likelihoods of given texts. Names are fetched on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_core.evaluation.likelihood import draw_noise, is_greedy, loglikelihood, masked_loglikelihood

__all__ = ["draw_noise", "is_greedy", "loglikelihood", "masked_loglikelihood"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("dllm_core.evaluation.likelihood"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
