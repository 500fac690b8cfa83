"""Diffusion language models: train, generate, evaluate, convert and edit, with every model family a plugin.

``import dllm_core as dllm`` imports neither torch nor transformers: a public name is fetched on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from dllm_core.errors import (
    AmbiguousComponentError,
    ComponentLoadError,
    DataError,
    DllmError,
    ModelLoadError,
    OptionError,
    PromptError,
    UnknownComponentError,
    UsageError,
)
from dllm_core.hookspecs import (
    BundledCheckpoint,
    CachePolicySpec,
    CommitRuleSpec,
    EvalPresetSpec,
    EvalTaskSpec,
    ModelAdapterSpec,
    ObjectiveSpec,
    SamplerSpec,
    hookimpl,
)

__version__ = "0.1.0"

# Public name -> the module that defines it.
_EXPORTS = {
    "load": "dllm_core.models",
    "Denoiser": "dllm_core.models",
    "ModelAdapter": "dllm_core.models",
    "ModelArguments": "dllm_core.models.arguments",
    "DataArguments": "dllm_core.data.arguments",
    "load_dataset": "dllm_core.data",
    "objective": "dllm_core.objectives",
    "Objective": "dllm_core.objectives",
    "ObjectiveOutput": "dllm_core.objectives",
    "Corruption": "dllm_core.noise",
    "register_schedule": "dllm_core.noise",
    "sampler": "dllm_core.samplers",
    "Sampler": "dllm_core.samplers",
    "MDLMSampler": "dllm_core.samplers",
    "BD3LMSampler": "dllm_core.samplers",
    "CommitRule": "dllm_core.samplers",
    "CachePolicy": "dllm_core.samplers",
    "SampleOutput": "dllm_core.samplers",
    "Step": "dllm_core.samplers",
    "DiffusionTrainer": "dllm_core.training",
    "BD3LMTrainer": "dllm_core.training",
    "BD3LMConfig": "dllm_core.training",
    "MDLMTrainer": "dllm_core.training",
    "MDLMConfig": "dllm_core.training",
    "AppendEOSBlockWrapper": "dllm_core.training",
    "NoAttentionMaskWrapper": "dllm_core.training",
    "PackingCollator": "dllm_core.training",
    "PrependBOSWrapper": "dllm_core.training",
    "RandomTruncateWrapper": "dllm_core.training",
}
_SUBMODULES = ("data", "display", "evaluation", "models", "noise", "objectives", "samplers", "training", "utils")

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from dllm_core import data, display, evaluation, models, noise, objectives, samplers, training, utils
    from dllm_core.data import load_dataset
    from dllm_core.data.arguments import DataArguments
    from dllm_core.models import Denoiser, ModelAdapter, load
    from dllm_core.models.arguments import ModelArguments
    from dllm_core.noise import Corruption, register_schedule
    from dllm_core.objectives import Objective, ObjectiveOutput, objective
    from dllm_core.samplers import (
        BD3LMSampler,
        CachePolicy,
        CommitRule,
        MDLMSampler,
        SampleOutput,
        Sampler,
        Step,
        sampler,
    )
    from dllm_core.training import (
        AppendEOSBlockWrapper,
        BD3LMConfig,
        BD3LMTrainer,
        DiffusionTrainer,
        MDLMConfig,
        MDLMTrainer,
        NoAttentionMaskWrapper,
        PackingCollator,
        PrependBOSWrapper,
        RandomTruncateWrapper,
    )

__all__ = [
    "AmbiguousComponentError",
    "AppendEOSBlockWrapper",
    "BD3LMConfig",
    "BD3LMSampler",
    "BD3LMTrainer",
    "BundledCheckpoint",
    "CachePolicy",
    "CachePolicySpec",
    "CommitRule",
    "CommitRuleSpec",
    "ComponentLoadError",
    "Corruption",
    "DataArguments",
    "DataError",
    "Denoiser",
    "DiffusionTrainer",
    "DllmError",
    "EvalPresetSpec",
    "EvalTaskSpec",
    "MDLMConfig",
    "MDLMSampler",
    "MDLMTrainer",
    "ModelAdapter",
    "ModelAdapterSpec",
    "ModelArguments",
    "ModelLoadError",
    "NoAttentionMaskWrapper",
    "Objective",
    "ObjectiveOutput",
    "ObjectiveSpec",
    "OptionError",
    "PackingCollator",
    "PrependBOSWrapper",
    "PromptError",
    "RandomTruncateWrapper",
    "SampleOutput",
    "Sampler",
    "SamplerSpec",
    "Step",
    "UnknownComponentError",
    "UsageError",
    "__version__",
    "data",
    "display",
    "evaluation",
    "hookimpl",
    "load",
    "load_dataset",
    "models",
    "noise",
    "objective",
    "objectives",
    "register_schedule",
    "sampler",
    "samplers",
    "training",
    "utils",
]


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value  # the next access no longer comes here
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_SUBMODULES})
