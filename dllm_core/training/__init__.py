"""Training on the Hugging Face Trainer: arguments, trainers, collator, recipes. Names are fetched on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_core.training.arguments import BD3LMConfig, DiffusionArguments, MDLMConfig
    from dllm_core.training.bd3lm import BD3LMTrainer
    from dllm_core.training.collator import DiffusionCollator
    from dllm_core.training.mdlm import MDLMTrainer
    from dllm_core.training.packing import PackingCollator
    from dllm_core.training.recipes import Recipe, find_recipes, load_recipe
    from dllm_core.training.run import train
    from dllm_core.training.trainer import DiffusionTrainer
    from dllm_core.training.wrappers import (
        AppendEOSBlockWrapper,
        CollatorWrapper,
        NoAttentionMaskWrapper,
        PrependBOSWrapper,
        RandomTruncateWrapper,
    )

_EXPORTS = {
    "BD3LMConfig": "dllm_core.training.arguments",
    "BD3LMTrainer": "dllm_core.training.bd3lm",
    "DiffusionArguments": "dllm_core.training.arguments",
    "DiffusionCollator": "dllm_core.training.collator",
    "DiffusionTrainer": "dllm_core.training.trainer",
    "MDLMConfig": "dllm_core.training.arguments",
    "MDLMTrainer": "dllm_core.training.mdlm",
    "PackingCollator": "dllm_core.training.packing",
    "AppendEOSBlockWrapper": "dllm_core.training.wrappers",
    "CollatorWrapper": "dllm_core.training.wrappers",
    "NoAttentionMaskWrapper": "dllm_core.training.wrappers",
    "PrependBOSWrapper": "dllm_core.training.wrappers",
    "RandomTruncateWrapper": "dllm_core.training.wrappers",
    "Recipe": "dllm_core.training.recipes",
    "find_recipes": "dllm_core.training.recipes",
    "load_recipe": "dllm_core.training.recipes",
    "train": "dllm_core.training.run",
}

__all__ = [
    "AppendEOSBlockWrapper",
    "BD3LMConfig",
    "BD3LMTrainer",
    "CollatorWrapper",
    "DiffusionArguments",
    "DiffusionCollator",
    "DiffusionTrainer",
    "MDLMConfig",
    "MDLMTrainer",
    "NoAttentionMaskWrapper",
    "PackingCollator",
    "PrependBOSWrapper",
    "RandomTruncateWrapper",
    "Recipe",
    "find_recipes",
    "load_recipe",
    "train",
]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
