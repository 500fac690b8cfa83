"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_a2d.architectures import ARCHITECTURES
from dllm_core.hookspecs import ModelAdapterSpec, hookimpl


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
