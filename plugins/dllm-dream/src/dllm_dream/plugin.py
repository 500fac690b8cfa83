"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_core.hookspecs import ModelAdapterSpec, hookimpl


@hookimpl
def dllm_model_adapters() -> Iterable[ModelAdapterSpec]:
    yield ModelAdapterSpec(
        name="dream",
        summary="Dream diffusion models: Dream-v0-7B base and instruct",
        source="Dream 7B, arXiv 2508.15487; Dream-org/Dream-v0-Instruct-7B, modeling_dream.py",
        target="dllm_dream.adapter:DreamAdapter",
        model_types=("Dream",),
    )
