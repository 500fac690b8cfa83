"""LLaDA for dllm: masked diffusion language models, with a small trained checkpoint inside.

Importing this package imports no torch: the classes below load on first use.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "LLaDAConfig": "dllm_llada.configuration",
    "LLaDAModel": "dllm_llada.modeling",
    "LLaDAModelLM": "dllm_llada.modeling",
    "LLaDAAdapter": "dllm_llada.adapter",
}

__all__ = ["LLaDAAdapter", "LLaDAConfig", "LLaDAModel", "LLaDAModelLM", "__version__"]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
