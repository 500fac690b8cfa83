"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_core.hookspecs import EvalPresetSpec, ModelAdapterSpec, hookimpl

FAMILIES = (("bert", "Bert", "BERT"), ("roberta", "Roberta", "RoBERTa"), ("modernbert", "ModernBert", "ModernBERT"))


@hookimpl
def dllm_model_adapters() -> Iterable[ModelAdapterSpec]:
    for name, prefix, title in FAMILIES:
        yield ModelAdapterSpec(
            name=name,
            summary=f"{title} as a diffusion language model",
            source="ZHZisZZ/dllm at ca17675, dllm/pipelines/bert (BERT-Chat)",
            target=f"dllm_bert.adapter:{prefix}Adapter",
            model_types=(name,),
        )


@hookimpl
def dllm_eval_tasks() -> Iterable[EvalPresetSpec]:
    for size in ("base", "large"):
        yield EvalPresetSpec(
            name=f"bert-chat-{size}",
            summary=f"ModernBERT-{size}-chat as the BERT-Chat report evaluates it",
            source="ZHZisZZ/dllm at ca17675, examples/bert (BERT-Chat)",
            target=f"dllm_bert:presets/bert-chat-{size}.yaml",
        )
