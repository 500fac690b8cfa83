"""Fast decoding for dllm: commit rules that write several tokens a step, for every model family.

Importing this package imports no torch.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "Credit": "dllm_fastdllm.rules.credit",
    "Delayed": "dllm_fastdllm.caches.delayed",
    "Draft": "dllm_fastdllm.rules.draft",
    "Dual": "dllm_fastdllm.caches.dual",
    "Entropy": "dllm_fastdllm.rules.entropy",
    "Factor": "dllm_fastdllm.rules.factor",
    "FastOptions": "dllm_fastdllm.sampler",
    "Frechet": "dllm_fastdllm.rules.frechet",
    "Hierarchical": "dllm_fastdllm.rules.hierarchical",
    "Interval": "dllm_fastdllm.caches.interval",
    "Klass": "dllm_fastdllm.rules.klass",
    "LoPASampler": "dllm_fastdllm.lopa",
    "MDLMFastdLLMSampler": "dllm_fastdllm.sampler",
    "Prefix": "dllm_fastdllm.caches.prefix",
    "Threshold": "dllm_fastdllm.rules.threshold",
    "Vicinity": "dllm_fastdllm.caches.vicinity",
    "WINOSampler": "dllm_fastdllm.wino",
}

__all__ = [
    "Credit",
    "Delayed",
    "Draft",
    "Dual",
    "Entropy",
    "Factor",
    "FastOptions",
    "Frechet",
    "Hierarchical",
    "Interval",
    "Klass",
    "LoPASampler",
    "MDLMFastdLLMSampler",
    "Prefix",
    "Threshold",
    "Vicinity",
    "WINOSampler",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
