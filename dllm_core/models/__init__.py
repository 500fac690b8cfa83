"""Models: adapters declare a family's conventions, a `Denoiser` applies them, `load` brings both together."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_core.models.adapter import ModelAdapter
    from dllm_core.models.arguments import ModelArguments
    from dllm_core.models.attention import as_model_mask, block_causal_pattern, padding_pattern
    from dllm_core.models.denoiser import Denoiser
    from dllm_core.models.loading import load

_EXPORTS = {
    "ModelAdapter": "dllm_core.models.adapter",
    "ModelArguments": "dllm_core.models.arguments",
    "Denoiser": "dllm_core.models.denoiser",
    "load": "dllm_core.models.loading",
    "block_causal_pattern": "dllm_core.models.attention",
    "padding_pattern": "dllm_core.models.attention",
    "as_model_mask": "dllm_core.models.attention",
}

__all__ = [
    "Denoiser",
    "ModelAdapter",
    "ModelArguments",
    "as_model_mask",
    "block_causal_pattern",
    "load",
    "padding_pattern",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
