"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_core.hookspecs import (
    BundledCheckpoint,
    EvalPresetSpec,
    EvalTaskSpec,
    ModelAdapterSpec,
    ObjectiveSpec,
    SamplerSpec,
    hookimpl,
)
from dllm_editflow.models.families import FAMILIES

TINY = BundledCheckpoint(
    name="editflow-tiny",
    summary="Mends errors in small Python functions, 0.9M weights; for dllm edit",
    resource="dllm_editflow:checkpoints/editflow-tiny",
)


@hookimpl
def dllm_objectives() -> Iterable[ObjectiveSpec]:
    yield ObjectiveSpec(
        name="editflow",
        summary="Edit Flows: learn at which rate to insert, delete and substitute, and what",
        target="dllm_editflow.objective:EditFlowObjective",
        source="Edit Flows, arXiv:2506.09018, equation 23; ZHZisZZ/dllm at ca17675, dllm/pipelines/editflow",
    )


@hookimpl
def dllm_samplers() -> Iterable[SamplerSpec]:
    yield SamplerSpec(
        name="editflow",
        summary="Edit Flows: insert, delete and substitute, many edits a step",
        target="dllm_editflow.sampler:EditFlowSampler",
        source="Edit Flows, arXiv:2506.09018, appendix C; ZHZisZZ/dllm at ca17675, dllm/pipelines/editflow/sampler.py",
        families=tuple(row.model_type for row in FAMILIES),
    )
    yield SamplerSpec(
        name="mend",
        summary="Mends a draft: makes every edit that is sure enough, until none is left",
        target="dllm_editflow.sampler:EditFlowSampler",
        source="original; threshold decoding of Edit Flows, arXiv:2506.09018",
        defaults={"mode": "threshold", "max_passes": 64},  # a draft that takes more is not getting better
        families=tuple(row.model_type for row in FAMILIES),
        edits=True,
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
            bundled=(TINY,) if row.model_type == "editflow-llada" else (),
            converter="dllm_editflow.converting:convert",
        )


@hookimpl
def dllm_eval_tasks() -> Iterable[EvalTaskSpec | EvalPresetSpec]:
    yield EvalTaskSpec(
        name="editflow_tiny",
        summary="Held-out functions of editflow-tiny to mend, right to the last character: clean, 1 to 3 errors, files",
        source="original",
        target="dllm_editflow:tasks/tiny",
    )
    yield EvalPresetSpec(
        name="editflow-tiny",
        summary="editflow-tiny on held-out functions, clean ones and with errors, as in its README",
        source="original",
        target="dllm_editflow:presets/editflow-tiny.yaml",
    )
