"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_core.hookspecs import CachePolicySpec, CommitRuleSpec, EvalPresetSpec, SamplerSpec, hookimpl

AS_PUBLISHED = {"suffix_window": None, "stop_at_eos": False}

# The first one is what `dllm run --plugin fastdllm` takes.
SAMPLERS: tuple[SamplerSpec, ...] = (
    SamplerSpec(
        name="fast",
        summary="The fastest preset that keeps quality: computes the block only, writes what it is sure of",
        target="dllm_fastdllm.sampler:MDLMFastdLLMSampler",
        source="Fast-dLLM, arXiv:2505.22618; suffix window: Streaming-dLLM, arXiv:2601.17917",
    ),
    SamplerSpec(
        name="dual",
        summary="As published: all but the block is kept, every sure token written",
        target="dllm_fastdllm.sampler:MDLMFastdLLMSampler",
        source="Fast-dLLM, arXiv:2505.22618, dual cache with threshold 0.9",
        defaults={"cache": "fastdllm/dual", "threshold": 0.9, **AS_PUBLISHED},
    ),
    SamplerSpec(
        name="prefix",
        summary="As published: what is in front of the block is kept, every sure token written",
        target="dllm_fastdllm.sampler:MDLMFastdLLMSampler",
        source="Fast-dLLM, arXiv:2505.22618, prefix cache with threshold 0.9",
        defaults={"cache": "fastdllm/prefix", "threshold": 0.9, **AS_PUBLISHED},
    ),
    SamplerSpec(
        name="parallel",
        summary="As published: the whole canvas is computed, every sure token written",
        target="dllm_fastdllm.sampler:MDLMFastdLLMSampler",
        source="Fast-dLLM, arXiv:2505.22618, algorithm 1 without cache",
        defaults={"cache": "none", "threshold": 0.9, **AS_PUBLISHED},
    ),
    SamplerSpec(
        name="wino",
        summary="Writes widely, verifies with a hidden copy of the block, and takes back what does not hold",
        target="dllm_fastdllm.wino:WINOSampler",
        source="WINO, arXiv:2507.18578, section 3",
    ),
    SamplerSpec(
        name="lopa",
        summary="Tries the next surest positions on branches of their own and follows the best",
        target="dllm_fastdllm.lopa:LoPASampler",
        source="LoPA, arXiv:2512.16229",
    ),
)

RULES: tuple[CommitRuleSpec, ...] = (
    CommitRuleSpec(
        name="draft",
        summary="Writes every proposal above a confidence, up to a share of the masks left",
        target="dllm_fastdllm.rules.draft:Draft",
        source="WINO, arXiv:2507.18578, section 3",
    ),
    CommitRuleSpec(
        name="threshold",
        summary="Writes every proposal above a confidence, and always the surest",
        target="dllm_fastdllm.rules.threshold:Threshold",
        source="Fast-dLLM, arXiv:2505.22618, section 3.3",
    ),
    CommitRuleSpec(
        name="factor",
        summary="Writes as many proposals as greedy parallel decoding is safe for, up to a factor",
        target="dllm_fastdllm.rules.factor:Factor",
        source="Fast-dLLM, arXiv:2505.22618, theorem 1",
    ),
    CommitRuleSpec(
        name="frechet",
        summary="Writes the most proposals whose joint is certified against every other choice",
        target="dllm_fastdllm.rules.frechet:Frechet",
        source="Fast-dLLM++, arXiv:2606.02955",
    ),
    CommitRuleSpec(
        name="entropy",
        summary="Writes the least uncertain proposals while their entropies stay within a bound",
        target="dllm_fastdllm.rules.entropy:Entropy",
        source="EB-Sampler, arXiv:2505.24857, algorithm 1",
    ),
    CommitRuleSpec(
        name="klass",
        summary="Writes every sure proposal whose distribution has stopped moving",
        target="dllm_fastdllm.rules.klass:Klass",
        source="KLASS, arXiv:2511.05664, section 3",
    ),
    CommitRuleSpec(
        name="credit",
        summary="Writes what is sure once tokens that led before are given credit",
        target="dllm_fastdllm.rules.credit:Credit",
        source="CreditDecoding, arXiv:2510.06133",
    ),
    CommitRuleSpec(
        name="hierarchical",
        summary="Writes the surest proposal of every run of masks, and all that is sure",
        target="dllm_fastdllm.rules.hierarchical:Hierarchical",
        source="dInfer, arXiv:2510.08666",
    ),
)

POLICIES: tuple[CachePolicySpec, ...] = (
    CachePolicySpec(
        name="prefix",
        summary="Keeps what is in front of the block, refreshed when a block begins",
        target="dllm_fastdllm.caches.prefix:Prefix",
        source="Fast-dLLM, arXiv:2505.22618, section 3.2",
    ),
    CachePolicySpec(
        name="dual",
        summary="Keeps all but the block, in front of it and behind it, refreshed when a block begins",
        target="dllm_fastdllm.caches.dual:Dual",
        source="Fast-dLLM, arXiv:2505.22618, section 3.2",
    ),
    CachePolicySpec(
        name="vicinity",
        summary="Computes the block and its neighbours, after a few steps that compute everything",
        target="dllm_fastdllm.caches.vicinity:Vicinity",
        source="dInfer, arXiv:2510.08666",
    ),
    CachePolicySpec(
        name="delayed",
        summary="Keeps the prompt, and each finished block some steps after it was finished",
        target="dllm_fastdllm.caches.delayed:Delayed",
        source="d3LLM, arXiv:2601.07568",
    ),
    CachePolicySpec(
        name="interval",
        summary="Refreshes the prompt seldom and the response often, and computes what has been moving",
        target="dllm_fastdllm.caches.interval:Interval",
        source="dLLM-Cache, arXiv:2506.06295",
    ),
)


@hookimpl
def dllm_samplers() -> Iterable[SamplerSpec | CommitRuleSpec | CachePolicySpec]:
    return (*SAMPLERS, *RULES, *POLICIES)


@hookimpl
def dllm_eval_tasks() -> Iterable[EvalPresetSpec]:
    for family, title in (("llada", "LLaDA-8B-Instruct"), ("dream", "Dream-v0-Base-7B")):
        for length in (256, 512):
            yield EvalPresetSpec(
                name=f"fast-dllm-{family}-{length}",
                summary=f"Fast-dLLM on {title}, {length} new tokens: caches, thresholds and both, beside the baseline",
                source="Fast-dLLM, arXiv:2505.22618, tables 1 and 2; ZHZisZZ/dllm, examples/fastdllm",
                target=f"dllm_fastdllm:presets/fast-dllm-{family}-{length}.yaml",
            )
