"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_core.hookspecs import ModelAdapterSpec, hookimpl

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
