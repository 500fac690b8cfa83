"""Training objectives: what is hidden, and how the answer is scored. Names are fetched on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_core.objectives.base import Batch, Objective, ObjectiveOutput
    from dllm_core.objectives.bd3lm import BD3LMObjective
    from dllm_core.objectives.mdlm import MDLMObjective
    from dllm_core.objectives.weighting import register_weighting

_EXPORTS = {
    "BD3LMObjective": "dllm_core.objectives.bd3lm",
    "Batch": "dllm_core.objectives.base",
    "MDLMObjective": "dllm_core.objectives.mdlm",
    "Objective": "dllm_core.objectives.base",
    "ObjectiveOutput": "dllm_core.objectives.base",
    "register_weighting": "dllm_core.objectives.weighting",
}

__all__ = [
    "BD3LMObjective",
    "Batch",
    "MDLMObjective",
    "Objective",
    "ObjectiveOutput",
    "objective",
    "register_weighting",
]


def objective(name: str, **options: object) -> Objective:
    """The objective of that name with these options.

    Example:
        >>> objective("mdlm", schedule="cosine", normalization="sequence")

    Raises:
        UnknownComponentError: no installed plugin offers it.
        OptionError: an option that it does not have, or a value out of range.
    """
    from dllm_core import config, registry

    return config.from_mapping(registry.load("objective", name), options, what=f"objective {name!r}")


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
