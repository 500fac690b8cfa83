"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_core.hookspecs import CommitRuleSpec, SamplerSpec, hookimpl


@hookimpl
def dllm_samplers() -> Iterable[SamplerSpec | CommitRuleSpec]:
    yield SamplerSpec(
        name="parallel",
        summary="The masked sampler, writing every token it is sure of at each step",
        target="dllm_core.samplers.masked:MDLMSampler",
        source="Fast-dLLM, arXiv:2505.22618, algorithm 1 without cache",
        defaults={"commit": "threshold", "threshold": 0.9},
    )
    yield CommitRuleSpec(
        name="threshold",
        summary="Writes every proposal above a confidence, and always the surest",
        target="dllm_fastdllm.rules.threshold:Threshold",
        source="Fast-dLLM, arXiv:2505.22618, section 3.3",
    )
    yield CommitRuleSpec(
        name="factor",
        summary="Writes as many proposals as greedy parallel decoding is safe for, up to a factor",
        target="dllm_fastdllm.rules.factor:Factor",
        source="Fast-dLLM, arXiv:2505.22618, theorem 1",
    )
    yield CommitRuleSpec(
        name="frechet",
        summary="Writes the most proposals whose joint is certified against every other choice",
        target="dllm_fastdllm.rules.frechet:Frechet",
        source="Fast-dLLM++, arXiv:2606.02955",
    )
