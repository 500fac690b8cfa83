"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_core.hookspecs import EvalPresetSpec, ModelAdapterSpec, SamplerSpec, hookimpl

# What all of Dream's algorithms have in common: one canvas without blocks, and confidence measured on the distribution
# that tokens are drawn from. Temperature and nucleus are those of the model cards.
SHARED: dict[str, object] = {
    "block_size": None,
    "temperature": 0.2,
    "top_p": 0.95,
    "confidence_distribution": "sampling",
}
# Published name of the algorithm (`alg`) -> what it is here, beyond SHARED. One name differs: maskgit_plus is `dream`.
ALGORITHMS: dict[str, dict[str, object]] = {
    "entropy": {"confidence": "entropy"},
    "dream": {"confidence": "probability"},
    "topk_margin": {"confidence": "margin"},
    "origin": {"confidence": "random", "stochastic_quota": True, "time_epsilon": 1e-3},
}
SUMMARIES = {
    "entropy": "Dream's algorithm entropy: the positions of least entropy first",
    "dream": "Dream's algorithm maskgit_plus: the most probable tokens first",
    "topk_margin": "Dream's algorithm topk_margin: the widest margin between the two best tokens first",
    "origin": "Dream's algorithm origin: every position is written with the chance that the schedule gives",
}


@hookimpl
def dllm_model_adapters() -> Iterable[ModelAdapterSpec]:
    yield ModelAdapterSpec(
        name="dream",
        summary="Dream diffusion models: Dream-v0-7B base and instruct",
        source="Dream 7B, arXiv 2508.15487; Dream-org/Dream-v0-Instruct-7B, modeling_dream.py",
        target="dllm_dream.adapter:DreamAdapter",
        model_types=("Dream",),
    )


@hookimpl
def dllm_samplers() -> Iterable[SamplerSpec]:
    for name, options in ALGORITHMS.items():
        yield SamplerSpec(
            name=name,
            summary=SUMMARIES[name],
            target="dllm_core.samplers.masked:MDLMSampler",
            source="Dream 7B, arXiv 2508.15487; Dream-org/Dream-v0-Base-7B, generation_utils.py",
            defaults={**SHARED, **options},
            families=("dream",),
        )


@hookimpl
def dllm_eval_tasks() -> Iterable[EvalPresetSpec]:
    for name, title in (("dream-7b-base", "Dream-v0-Base-7B"), ("dream-7b-instruct", "Dream-v0-Instruct-7B")):
        yield EvalPresetSpec(
            name=name,
            summary=f"{title} as the dllm report evaluates it, beside the official scores",
            source="Dream 7B, arXiv 2508.15487; ZHZisZZ/dllm, examples/dream/eval.sh",
            target=f"dllm_dream:presets/{name}.yaml",
        )
    yield EvalPresetSpec(
        name="dream-7b-base-official",
        summary="Dream-v0-Base-7B as its authors evaluate it: 128 copies everywhere",
        source="Dream 7B, arXiv 2508.15487; DreamLM/Dream, eval/eval_dream_gen.sh and eval_dream_mc.sh",
        target="dllm_dream:presets/dream-7b-base-official.yaml",
    )
