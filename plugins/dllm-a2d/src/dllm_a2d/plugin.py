"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_a2d.architectures import ARCHITECTURES
from dllm_core.hookspecs import EvalPresetSpec, ModelAdapterSpec, hookimpl

# Names of presets, and the checkpoints of which they hold the published table.
PRESETS = {
    "a2d-qwen3-0.6b-mdlm": "Qwen3-0.6B-diffusion-mdlm",
    "a2d-qwen3-0.6b-bd3lm": "Qwen3-0.6B-diffusion-bd3lm",
    "a2d-coder-0.5b-mdlm": "Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm",
    "a2d-coder-0.5b-bd3lm": "Qwen2.5-Coder-0.5B-Instruct-diffusion-bd3lm",
}


@hookimpl
def dllm_model_adapters() -> Iterable[ModelAdapterSpec]:
    for row in ARCHITECTURES:
        yield ModelAdapterSpec(
            name=row.adapter_name,
            summary=f"{row.title} turned diffusion",
            source="ZHZisZZ/dllm at ca17675, dllm/pipelines/a2d (Tiny-A2D)",
            target=f"dllm_a2d.adapter:A2D{row.name}Adapter",
            model_types=(row.model_type,),
            converter="dllm_a2d.converting:convert",
            converts=(row.source_type,),
        )


@hookimpl
def dllm_eval_tasks() -> Iterable[EvalPresetSpec]:
    for name, title in PRESETS.items():
        yield EvalPresetSpec(
            name=name,
            summary=f"{title} as the Tiny-A2D report evaluates it",
            source="ZHZisZZ/dllm at ca17675, examples/a2d (Tiny-A2D)",
            target=f"dllm_a2d:presets/{name}.yaml",
        )
