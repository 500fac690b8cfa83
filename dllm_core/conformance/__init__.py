"""What third parties run to check their plugins, and the exact models that the checks rest on.

One test class a component, with its capabilities declared::

    from dllm_core.conformance import PluginTests, SamplerTests

    class TestPlugin(PluginTests):
        plugin = "acme"

    class TestConfidence(SamplerTests):
        component = "acme/confidence"
        supports_infill = False

pytest collects them as they are; ``dllm plugins check acme`` runs them without pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_core.conformance.adapter import AdapterTests
    from dllm_core.conformance.cache_policy import CachePolicyTests
    from dllm_core.conformance.commit_rule import CommitRuleTests
    from dllm_core.conformance.eval_task import EvalTaskTests
    from dllm_core.conformance.objective import ObjectiveTests
    from dllm_core.conformance.plugin import PluginTests
    from dllm_core.conformance.sampler import SamplerTests
    from dllm_core.conformance.suite import Suite, requires
    from dllm_core.conformance.toy import random_joint, toy_denoiser

_EXPORTS = {
    "PluginTests": "dllm_core.conformance.plugin",
    "AdapterTests": "dllm_core.conformance.adapter",
    "ObjectiveTests": "dllm_core.conformance.objective",
    "SamplerTests": "dllm_core.conformance.sampler",
    "CommitRuleTests": "dllm_core.conformance.commit_rule",
    "CachePolicyTests": "dllm_core.conformance.cache_policy",
    "EvalTaskTests": "dllm_core.conformance.eval_task",
    "Suite": "dllm_core.conformance.suite",
    "requires": "dllm_core.conformance.suite",
    "random_joint": "dllm_core.conformance.toy",
    "toy_denoiser": "dllm_core.conformance.toy",
}

__all__ = [
    "AdapterTests",
    "CachePolicyTests",
    "CommitRuleTests",
    "EvalTaskTests",
    "ObjectiveTests",
    "PluginTests",
    "SamplerTests",
    "Suite",
    "random_joint",
    "requires",
    "toy_denoiser",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
