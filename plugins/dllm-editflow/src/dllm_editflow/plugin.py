"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_core.hookspecs import ModelAdapterSpec, ObjectiveSpec, hookimpl
from dllm_editflow.models.families import FAMILIES


@hookimpl
def dllm_objectives() -> Iterable[ObjectiveSpec]:
    yield ObjectiveSpec(
        name="editflow",
        summary="Edit Flows: learn at which rate to insert, delete and substitute, and what",
        target="dllm_editflow.objective:EditFlowObjective",
        source="Edit Flows, arXiv:2506.09018, equation 23; ZHZisZZ/dllm at ca17675, dllm/pipelines/editflow",
    )


@hookimpl
def dllm_model_adapters() -> Iterable[ModelAdapterSpec]:
    for row in FAMILIES:
        yield ModelAdapterSpec(
            name=row.model_type,
            summary=f"{row.title} with edit heads",
            source="ZHZisZZ/dllm at ca17675, dllm/pipelines/editflow/models",
            target=f"dllm_editflow.adapters:EditFlow{row.name}Adapter",
            model_types=(row.model_type,),
            converter="dllm_editflow.converting:convert",
        )
