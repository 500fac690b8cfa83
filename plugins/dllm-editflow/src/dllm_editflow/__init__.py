"""Edit Flows for dllm: models that insert, delete and substitute.

Importing this package imports no torch.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "EditCorruption": "dllm_editflow.objective",
    "EditFlowConfig": "dllm_editflow.training",
    "EditFlowObjective": "dllm_editflow.objective",
    "EditFlowSampler": "dllm_editflow.sampler",
    "EditFlowTrainer": "dllm_editflow.training",
    "Operation": "dllm_editflow.operations",
    "align": "dllm_editflow.alignment",
    "replay": "dllm_editflow.operations",
    "undo": "dllm_editflow.operations",
}

__all__ = [
    "EditCorruption",
    "EditFlowConfig",
    "EditFlowObjective",
    "EditFlowSampler",
    "EditFlowTrainer",
    "Operation",
    "__version__",
    "align",
    "replay",
    "undo",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
