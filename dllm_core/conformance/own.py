"""The test classes of the core's own components: they pass the same suite, with no special cases.

``dllm plugins check core`` and the tests of this repository run them.
"""

from __future__ import annotations

from typing import ClassVar

from dllm_core.conformance.cache_policy import CachePolicyTests
from dllm_core.conformance.commit_rule import CommitRuleTests
from dllm_core.conformance.objective import ObjectiveTests
from dllm_core.conformance.sampler import SamplerTests
from dllm_core.conformance.suite import Suite


class MDLMSampling(SamplerTests):
    component = "core/mdlm"
    samples_exactly = True


class BD3LMSampling(SamplerTests):
    component = "core/bd3lm"
    bad_options: ClassVar[dict] = {"block_grid": ["relative"]}
    samples_exactly = True


class QuotaRule(CommitRuleTests):
    component = "core/quota"


class NoCachePolicy(CachePolicyTests):
    component = "core/none"
    exact = True


class FinishedBlocksPolicy(CachePolicyTests):
    component = "core/block"
    exact = True


class MDLMLoss(ObjectiveTests):
    component = "core/mdlm"
    bad_options: ClassVar[dict] = {
        "schedule": ["linaer"],
        "weighting": ["schedul"],
        "normalization": ["tokens"],
        "time_epsilon": [-0.1, 1, 5],
    }
    loss_is_bound = True


SUITES: list[type[Suite]] = [MDLMLoss, MDLMSampling, BD3LMSampling, QuotaRule, NoCachePolicy, FinishedBlocksPolicy]
