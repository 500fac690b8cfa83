"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_core.hookspecs import ModelAdapterSpec, hookimpl


@hookimpl
def dllm_model_adapters() -> Iterable[ModelAdapterSpec]:
    for name, title in (("Llama", "Llama"), ("Qwen2", "Qwen2 and Qwen2.5"), ("Qwen3", "Qwen3")):
        yield ModelAdapterSpec(
            name=f"a2d-{name.lower()}",
            summary=f"{title} turned diffusion",
            source="ZHZisZZ/dllm at ca17675, dllm/pipelines/a2d (Tiny-A2D)",
            target=f"dllm_a2d.adapter:A2D{name}Adapter",
            model_types=(f"a2d-{name.lower()}",),
        )
