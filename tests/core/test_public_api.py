"""The public names: each exists, none costs an import before it is used, and the plugin contract does not drift."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dllm_core
from dllm_core import hookspecs

LAZY = sorted({*dllm_core._EXPORTS, *dllm_core._SUBMODULES})
SPEC = ("name", "summary", "target", "source")

# What a published plugin relies on. A change here is a change for third parties: CHANGELOG.md says so.
HOOKS = {"dllm_objectives": [], "dllm_model_adapters": [], "dllm_samplers": [], "dllm_eval_tasks": []}
SPECS = {
    "ObjectiveSpec": SPEC,
    "ModelAdapterSpec": (*SPEC, "model_types", "bundled", "converter", "converts"),
    "BundledCheckpoint": ("name", "summary", "resource", "demo_prompts", "max_new_tokens", "exercises"),
    "SamplerSpec": (*SPEC, "defaults", "families", "edits"),
    "CommitRuleSpec": SPEC,
    "CachePolicySpec": SPEC,
    "EvalTaskSpec": SPEC,
    "EvalPresetSpec": SPEC,
}


@pytest.mark.parametrize("name", LAZY)
def test_every_lazy_name_exists(name: str) -> None:
    assert getattr(dllm_core, name) is not None
    assert name in dir(dllm_core)


def test_all_lists_every_public_name() -> None:
    assert set(LAZY) <= set(dllm_core.__all__)
    assert all(hasattr(dllm_core, name) for name in dllm_core.__all__)
    assert len(dllm_core.__all__) == len(set(dllm_core.__all__))


def test_an_unknown_name_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dllm_core' has no attribute 'smapler'"):
        _ = dllm_core.smapler


def test_the_seeds_names_are_what_they_seem() -> None:
    assert inspect.ismodule(dllm_core.samplers)
    assert inspect.ismodule(dllm_core.objectives)
    assert callable(dllm_core.sampler)
    assert callable(dllm_core.objective)
    assert dllm_core.load is dllm_core.models.load
    assert dllm_core.Denoiser is dllm_core.models.Denoiser
    assert dllm_core.Corruption is dllm_core.noise.Corruption


@pytest.mark.parametrize(
    "statement",
    [
        "import dllm_core",
        "import dllm_core.registry; dllm_core.registry.components('sampler')",
        "dir(__import__('dllm_core'))",
    ],
)
def test_importing_the_core_imports_nothing_heavy(statement: str) -> None:
    code = f"import json, sys; {statement}; print(json.dumps([name for name in sys.modules if '.' not in name]))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "numpy", "datasets"} & set(json.loads(loaded))


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert dllm_core.__version__ == project["version"]


def test_the_hooks_are_these_with_these_arguments() -> None:
    marked = {
        name: list(inspect.signature(function).parameters)
        for name, function in vars(hookspecs).items()
        if hasattr(function, "dllm_spec")
    }
    assert marked == HOOKS


def test_the_specs_have_these_fields() -> None:
    found = {
        name: tuple(field.name for field in dataclasses.fields(spec_type))
        for name, spec_type in vars(hookspecs).items()
        if dataclasses.is_dataclass(spec_type) and name != "Spec"
    }
    assert found == SPECS


@pytest.mark.parametrize("name", SPECS)
def test_specs_are_frozen_and_named(name: str) -> None:
    spec_type = getattr(hookspecs, name)
    assert spec_type.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(spec_type))
    assert getattr(dllm_core, name) is spec_type
