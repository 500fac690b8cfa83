"""The test classes of the core's own components: they pass the same suite, with no special cases.

``dllm plugins check core`` and the tests of this repository run them.
"""

from __future__ import annotations

from typing import ClassVar

from dllm_core.conformance.cache_policy import CachePolicyTests
from dllm_core.conformance.commit_rule import CommitRuleTests
from dllm_core.conformance.objective import ObjectiveTests
from dllm_core.conformance.own_tasks import TASK_SUITES
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


class BD3LMLoss(ObjectiveTests):
    component = "core/bd3lm"
    options: ClassVar[dict] = {"block_size": 2}
    bad_options: ClassVar[dict] = {
        "block_size": [0, -1],
        "time_per": ["token"],
        "noise_range": [(0.5, 0.5), (-0.1, 1.0), (0.2, 1.5), (0.0, 0.0005)],
    }
    loss_is_bound = True
    hides_context = False  # the clean text stands beside the noised one
    supports_right_shift = False
    hides_independently = False  # a time for each block


class BD3LMLossByTheSequence(ObjectiveTests):
    component = "core/bd3lm"
    options: ClassVar[dict] = {"block_size": 3, "time_per": "sequence"}
    loss_is_bound = True
    hides_context = False
    supports_right_shift = False


SUITES: list[type[Suite]] = [
    MDLMLoss,
    BD3LMLoss,
    BD3LMLossByTheSequence,
    MDLMSampling,
    BD3LMSampling,
    QuotaRule,
    NoCachePolicy,
    FinishedBlocksPolicy,
    *TASK_SUITES,
]
