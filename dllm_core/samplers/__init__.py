"""Samplers: one loop, whose proposal, commit rule, cache policy and length policy combine freely."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dllm_core.models import Denoiser, ModelArguments
    from dllm_core.samplers.base import Sampler
    from dllm_core.samplers.block import BD3LMSampler, BlockOptions
    from dllm_core.samplers.cache import CachePolicy, CacheRun, FinishedBlocks, NoCache
    from dllm_core.samplers.commit import BlockSize, CommitRule, Quota
    from dllm_core.samplers.masked import MDLMSampler
    from dllm_core.samplers.options import MaskedOptions
    from dllm_core.samplers.output import SampleOutput, SampleStats, Step
    from dllm_core.samplers.proposals import Proposal
    from dllm_core.samplers.state import SamplerState
    from dllm_core.samplers.view import Answer, Layout, View

_EXPORTS = {
    "Sampler": "dllm_core.samplers.base",
    "MDLMSampler": "dllm_core.samplers.masked",
    "BD3LMSampler": "dllm_core.samplers.block",
    "BlockOptions": "dllm_core.samplers.block",
    "MaskedOptions": "dllm_core.samplers.options",
    "BlockSize": "dllm_core.samplers.commit",
    "CommitRule": "dllm_core.samplers.commit",
    "Quota": "dllm_core.samplers.commit",
    "CachePolicy": "dllm_core.samplers.cache",
    "CacheRun": "dllm_core.samplers.cache",
    "FinishedBlocks": "dllm_core.samplers.cache",
    "NoCache": "dllm_core.samplers.cache",
    "Answer": "dllm_core.samplers.view",
    "Layout": "dllm_core.samplers.view",
    "View": "dllm_core.samplers.view",
    "Proposal": "dllm_core.samplers.proposals",
    "SamplerState": "dllm_core.samplers.state",
    "Step": "dllm_core.samplers.output",
    "SampleOutput": "dllm_core.samplers.output",
    "SampleStats": "dllm_core.samplers.output",
}

__all__ = [
    "Answer",
    "BD3LMSampler",
    "BlockOptions",
    "BlockSize",
    "CachePolicy",
    "CacheRun",
    "CommitRule",
    "FinishedBlocks",
    "Layout",
    "MDLMSampler",
    "MaskedOptions",
    "NoCache",
    "Proposal",
    "Quota",
    "SampleOutput",
    "SampleStats",
    "Sampler",
    "SamplerState",
    "Step",
    "View",
    "get_sampler",
    "sampler",
]


def sampler(name: str, denoiser: Denoiser, **options: object) -> Sampler:
    """A sampler by name (``"mdlm"``, ``"plugin/name"``) with its options.

    Raises:
        UnknownComponentError: no installed plugin offers it.
        OptionError: an option is unknown, out of range, or does not fit the model.
    """
    from dllm_core import registry
    from dllm_core.samplers.parts import with_preset

    target, defaults = registry.load("sampler", name), registry.find("sampler", name).spec.defaults
    return target(denoiser, **with_preset(target.options_class, defaults, options))


def get_sampler(
    model_args: ModelArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> Sampler:
    """The sampler that ``model_args.sampler`` names, for a model and tokenizer from `dllm_core.utils`."""
    from dllm_core.models.loading import denoiser_from

    return sampler(model_args.sampler, denoiser_from(None, model, tokenizer))


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
