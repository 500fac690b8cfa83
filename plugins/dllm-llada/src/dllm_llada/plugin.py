"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_core.hookspecs import (
    BundledCheckpoint,
    CommitRuleSpec,
    EvalPresetSpec,
    EvalTaskSpec,
    ModelAdapterSpec,
    SamplerSpec,
    hookimpl,
)

LLADA_TINY = BundledCheckpoint(
    name="llada-tiny",
    summary="small trained LLaDA: sudoku, sums, sorting, words, filling blanks",
    resource="dllm_llada:checkpoints/llada-tiny",
    # All held out from training: the grid, the pairs of numbers, the digits, the words.
    demo_prompts=(
        "solve .4.. ..1. .3.. 4..3",
        "345+799=",
        "sort 1618033",
        "reverse matrix",
        "uppercase guitar",
        "58+[MASK:2]=143",
        "turtle|[MASK:6]",
    ),
    max_new_tokens=32,  # what it was trained to fill; its answers are at most 19 tokens
    exercises="dllm_llada.tiny.evaluate:prompts_with_answers",
)


@hookimpl
def dllm_model_adapters() -> Iterable[ModelAdapterSpec]:
    yield ModelAdapterSpec(
        name="llada",
        summary="LLaDA masked diffusion models: LLaDA-8B base and instruct, LLaDA-1.5",
        source="LLaDA, arXiv 2502.09992",
        target="dllm_llada.adapter:LLaDAAdapter",
        model_types=("llada",),
        bundled=(LLADA_TINY,),
    )
    yield ModelAdapterSpec(
        name="llada-moe",
        summary="LLaDA with experts: LLaDA-MoE-7B-A1B base and instruct",
        source="inclusionAI/LLaDA-MoE-7B-A1B-Base, modeling_lladamoe.py",
        target="dllm_llada.moe_adapter:LLaDAMoEAdapter",
        model_types=("lladamoe",),
    )
    yield ModelAdapterSpec(
        name="llada2",
        summary="LLaDA 2.0 and 2.1 (mini, flash): block diffusion with experts",
        source="LLaDA 2.0, arXiv 2512.15745; inclusionAI/LLaDA2.0-mini, modeling_llada2_moe.py",
        target="dllm_llada.moe_adapter:LLaDA2Adapter",
        model_types=("llada2_moe", "llada21_moe"),
    )


@hookimpl
def dllm_samplers() -> Iterable[SamplerSpec | CommitRuleSpec]:
    yield SamplerSpec(
        name="llada2",
        summary="Block diffusion as LLaDA 2.0 generates: what is sure enough, and no less than the quota",
        source="LLaDA 2.0, arXiv 2512.15745; inclusionAI/LLaDA2.0-mini, generate",
        target="dllm_llada.samplers:LLaDA2Sampler",
        families=("llada2",),
    )
    yield SamplerSpec(
        name="llada21",
        summary="As llada2, and what is written is replaced where the model comes to know better",
        source="LLaDA 2.1, arXiv 2602.08676; inclusionAI/LLaDA2.1-mini, generate",
        target="dllm_llada.samplers:LLaDA21Sampler",
        families=("llada2",),
    )
    yield CommitRuleSpec(
        name="threshold_or_quota",
        summary="Everything above a threshold, or the quota's number of the surest where that is more",
        source="LLaDA 2.0, arXiv 2512.15745; inclusionAI/LLaDA2.0-mini, generate",
        target="dllm_llada.threshold:ThresholdOrQuota",
    )


@hookimpl
def dllm_eval_tasks() -> Iterable[EvalTaskSpec | EvalPresetSpec]:
    yield EvalTaskSpec(
        name="llada_tiny",
        summary="Held-out exercises of llada-tiny, right to the last character: seven tasks, one a skill",
        source="original",
        target="dllm_llada:tasks/tiny",
    )
    yield EvalPresetSpec(
        name="llada-tiny",
        summary="llada-tiny on held-out exercises, in the three decoding orders of its README",
        source="original",
        target="dllm_llada:presets/llada-tiny.yaml",
    )
    yield EvalPresetSpec(
        name="llada-8b-instruct",
        summary="LLaDA-8B-Instruct as the dllm report evaluates it, beside the official scores",
        source="LLaDA, arXiv 2502.09992, table 2; ZHZisZZ/dllm, examples/llada/eval.sh",
        target="dllm_llada:presets/llada-8b-instruct.yaml",
    )
    yield EvalPresetSpec(
        name="llada-8b-base",
        summary="LLaDA-8B-Base as the dllm report evaluates it, beside the official scores",
        source="LLaDA, arXiv 2502.09992, table 1; ZHZisZZ/dllm, examples/llada/eval.sh",
        target="dllm_llada:presets/llada-8b-base.yaml",
    )
    yield EvalPresetSpec(
        name="llada-8b-base-official",
        summary="LLaDA-8B-Base as the official code evaluates it: 128 copies, with and without guidance",
        source="LLaDA, arXiv 2502.09992, table 1; ML-GSAI/LLaDA, eval_llada_lm_eval.sh and EVAL.md",
        target="dllm_llada:presets/llada-8b-base-official.yaml",
    )
    yield EvalPresetSpec(
        name="llada-1.5",
        summary="LLaDA-1.5 as its authors evaluate it, in blocks",
        source="LLaDA 1.5, arXiv 2505.19223; ML-GSAI/LLaDA, EVAL.md and opencompass/examples",
        target="dllm_llada:presets/llada-1.5.yaml",
    )
