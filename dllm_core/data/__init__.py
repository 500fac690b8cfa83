"""Data: which data a script uses, and how examples are prepared. Names are fetched on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_core.data.arguments import DataArguments
    from dllm_core.data.grammar import DataPart, format_spec, parse_spec
    from dllm_core.data.prepare import Prepared, load_dataset
    from dllm_core.data.rendering import DataOptions
    from dllm_core.data.report import Report

_EXPORTS = {
    "DataArguments": "dllm_core.data.arguments",
    "DataOptions": "dllm_core.data.rendering",
    "DataPart": "dllm_core.data.grammar",
    "Prepared": "dllm_core.data.prepare",
    "Report": "dllm_core.data.report",
    "format_spec": "dllm_core.data.grammar",
    "load_dataset": "dllm_core.data.prepare",
    "parse_spec": "dllm_core.data.grammar",
}

__all__ = [
    "DataArguments",
    "DataOptions",
    "DataPart",
    "Prepared",
    "Report",
    "format_spec",
    "load_dataset",
    "parse_spec",
]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
