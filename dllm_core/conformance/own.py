"""The test classes of the core's own components: they pass the same suite, with no special cases.

``dllm plugins check core`` and the tests of this repository run them.
"""

from __future__ import annotations

from dllm_core.conformance.cache_policy import CachePolicyTests
from dllm_core.conformance.commit_rule import CommitRuleTests
from dllm_core.conformance.sampler import SamplerTests
from dllm_core.conformance.suite import Suite


class MDLMSampling(SamplerTests):
    component = "core/mdlm"
    samples_exactly = True


class QuotaRule(CommitRuleTests):
    component = "core/quota"


class NoCachePolicy(CachePolicyTests):
    component = "core/none"
    exact = True


SUITES: list[type[Suite]] = [MDLMSampling, QuotaRule, NoCachePolicy]
