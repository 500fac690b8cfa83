"""Broken plugins: each is a good package with one defect, which one check of `PluginTests` must catch.

The packages are written to a temporary folder that lies on the path; what pip would note of them lies beside it, so
nobody else finds them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import ClassVar

from dllm_llada.conformance import TestAdapter as LLaDATests

from dllm_core.conformance.plugin import PluginTests
from dllm_core.plugins import PluginHost, load_plugins
from tests.conformance.mutant import Mutant

HOME = tempfile.TemporaryDirectory(prefix="dllm-mutants-")
sys.path.append(HOME.name)

SAMPLER = "from dllm_core import MDLMSampler\n\nclass Calm(MDLMSampler):\n    ...\n\ndef calm(): ...\n"
PLUGIN = """\
from dllm_core import BundledCheckpoint, EvalPresetSpec, ModelAdapterSpec, SamplerSpec, hookimpl

TINY = BundledCheckpoint(
    name="acme-tiny", summary="a small one", resource="{package}:checkpoints/tiny", demo_prompts=("add 1 2",)
)

@hookimpl
def dllm_samplers():
    yield SamplerSpec(
        name="calm",
        summary="Takes its time",
        target="{package}.sampler:Calm",
        source="original",
        defaults={"steps": 4},
    )

@hookimpl
def dllm_model_adapters():
    yield ModelAdapterSpec(
        name="acme",
        summary="Acme models",
        target="dllm_llada.adapter:LLaDAAdapter",
        source="arXiv:2502.09992",
        model_types=("llada",),
        bundled=(TINY,),
    )

@hookimpl
def dllm_eval_tasks():
    yield EvalPresetSpec(name="table-1", summary="Table 1", target="{package}:presets/one.yaml", source="original")
"""
RECIPE = """\
model: {adapter: acme, config: {d_model: 32}}
tokenizer: {builder: "dllm_llada.tiny.tokenizer:build_tokenizer"}
data: {generator: "dllm_llada.tiny.generate:training_examples"}
"""
FILES = {
    "__init__.py": "",
    "plugin.py": PLUGIN,
    "sampler.py": SAMPLER,
    "recipes/small.yaml": RECIPE,
    "presets/one.yaml": "steps: 4\n",
}
README = "A plugin with the sampler `calm`, the family `acme`, its checkpoint `acme-tiny` and the preset `table-1`."


class Outsider(PluginTests):
    """Tests of a package that only these tests know.

    Attributes:
        package: name of the package; one for each mutant, since modules are imported once.
        files: of the package, beside those in `FILES` or instead of them; None leaves one out.
        target, requires, readme: entry point and metadata.
    """

    plugin = "acme"
    package: ClassVar[str]
    files: ClassVar[Mapping[str, str | None]] = {}
    target: ClassVar[str] = "{package}.plugin"
    requires: ClassVar[str | None] = "dllm-core<0.2,>=0.1"
    readme: ClassVar[str] = README

    def host(self) -> PluginHost:
        return _host(type(self))

    def distribution(self) -> PathDistribution:
        return _install(type(self))


@functools.cache
def _host(suite: type[Outsider]) -> PluginHost:
    return load_plugins(entry_points=_install(suite).entry_points)


@functools.cache
def _install(suite: type[Outsider]) -> PathDistribution:
    """Write a package, and what pip notes of it."""
    folder = Path(HOME.name, suite.package)
    shutil.copytree(_checkpoint(), folder / "checkpoints/tiny")
    for name, text in (FILES | dict(suite.files)).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(text.replace("{package}", suite.package))
    notes = Path(HOME.name, "metadata", f"{suite.package}-1.0.dist-info")
    notes.mkdir(parents=True)
    requires = f"Requires-Dist: {suite.requires}\n" if suite.requires else ""
    (notes / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {suite.package}\nVersion: 1.0\n{requires}\n{suite.readme}\n"
    )
    target = suite.target.format(package=suite.package)
    (notes / "entry_points.txt").write_text(f"[dllm]\n{suite.plugin} = {target}\n")
    importlib.invalidate_caches()
    return importlib.metadata.PathDistribution(notes)


@functools.cache
def _checkpoint() -> Path:
    """A folder with a small model and its tokenizer."""
    tests = LLaDATests()
    with tests.saved(tests.model()) as folder:
        return shutil.copytree(folder, Path(HOME.name, "checkpoint"))


def changed(old: str, new: str) -> dict[str, str]:
    """The plugin's module with one text in place of another."""
    assert old in PLUGIN
    return {"plugin.py": PLUGIN.replace(old, new)}


def before(statement: str) -> dict[str, str]:
    """The plugin's module with a statement at its top."""
    return {"plugin.py": f"{statement}\n{PLUGIN}"}


def broken(check: str, name: str, why: str, **attributes: object) -> Mutant:
    body = {"package": f"acme_{name}", "__module__": __name__} | attributes
    return Mutant(check=f"PluginTests.{check}", name=name, suite=type("Broken", (Outsider,), body), why=why)


COUNTS = """\
import itertools
from dllm_core import SamplerSpec, hookimpl

numbers = itertools.count()

@hookimpl
def dllm_samplers():
    yield SamplerSpec(name=f"calm-{next(numbers)}", summary="-", target="{package}.sampler:Calm", source="original")
"""
SUBCLASS = """\
from dataclasses import dataclass
from dllm_core import SamplerSpec, hookimpl

@dataclass(frozen=True, kw_only=True)
class MySpec(SamplerSpec):
    colour: str = "blue"

@hookimpl
def dllm_samplers():
    yield MySpec(name="calm", summary="Takes its time", target="{package}.sampler:Calm", source="original")
"""
IN_THE_HOOK = "def dllm_samplers():\n    import numpy"

MUTANTS = [
    broken(
        "test_plugin_loads",
        "misspelt_hook",
        "misspells a hook, which pluggy alone ignores",
        files=changed("def dllm_samplers", "def dllm_sampler"),
    ),
    broken("test_plugin_loads", "raises", "raises when it is imported", files=before("import kernels_of_tomorrow")),
    broken("test_plugin_loads", "too_new", "needs a core that is not out yet", requires="dllm-core>=99,<100"),
    broken("test_import_is_light", "heavy", "imports numpy", files=before("import numpy")),
    broken(
        "test_import_is_light",
        "heavy_hook",
        "imports numpy inside a hook",
        files=changed("def dllm_samplers():", IN_THE_HOOK),
    ),
    broken("test_import_is_quick", "slow", "takes a second to import", files=before("import time; time.sleep(1.01)")),
    broken("test_import_is_silent", "greets", "prints a greeting", files=before("print('welcome to acme')")),
    broken(
        "test_import_is_silent",
        "warns",
        "writes to stderr",
        files=before("import sys; sys.stderr.write('new version')"),
    ),
    broken(
        "test_import_leaves_the_process_alone",
        "sets_a_variable",
        "sets an environment variable",
        files=before("import os; os.environ['ACME_PARALLELISM'] = 'false'"),
    ),
    broken(
        "test_import_leaves_the_process_alone",
        "extends_the_path",
        "adds its folder to sys.path",
        files=before("import sys; sys.path.append('acme')"),
    ),
    broken("test_hooks_are_pure", "counts", "yields another name at every call", files={"plugin.py": COUNTS}),
    broken(
        "test_specs_are_those_of_the_contract",
        "own_spec",
        "yields a spec of a class of its own",
        files={"plugin.py": SUBCLASS},
    ),
    broken(
        "test_names_are_well_formed",
        "upper_case",
        "names a sampler in upper case",
        files=changed('name="calm"', 'name="Calm"'),
    ),
    broken(
        "test_names_are_well_formed",
        "two_checkpoints_of_one_name",
        "ships two checkpoints of one name",
        files=changed("(TINY,)", "(TINY, TINY)"),
    ),
    broken(
        "test_summaries_are_one_line",
        "two_lines",
        "describes a sampler in two lines",
        files=changed("Takes its time", "Takes\\nits time"),
    ),
    broken("test_summaries_are_one_line", "says_nothing", "has an empty summary", files=changed("Takes its time", "")),
    broken("test_sources_are_stated", "todo", "says TODO for a source", files=changed("arXiv:2502.09992", "TODO")),
    broken("test_targets_resolve", "misspelt_target", "misspells a target", files=changed(":Calm", ":Clam")),
    broken("test_targets_resolve", "lost_file", "forgets a preset's file", files={"presets/one.yaml": None}),
    broken(
        "test_targets_are_of_the_right_kind", "function", "names a function as sampler", files=changed(":Calm", ":calm")
    ),
    broken(
        "test_targets_are_of_the_right_kind",
        "list_for_mapping",
        "ships a preset that is a list",
        files={"presets/one.yaml": "- steps\n"},
    ),
    broken(
        "test_sampler_defaults_are_options",
        "misspelt_default",
        "misspells an option in a preset",
        files=changed('"steps"', '"stepps"'),
    ),
    broken(
        "test_model_types_agree",
        "other_model_type",
        "registers another model type than its class serves",
        files=changed('("llada",)', '("llada", "llada2")'),
    ),
    broken(
        "test_converters_resolve",
        "no_module",
        "names a converter that is not there",
        files=changed('model_types=("llada",),', 'model_types=("llada",), converter="dllm_llada.converting:convert",'),
    ),
    broken(
        "test_converters_resolve",
        "other_arguments",
        "names a converter that takes other arguments",
        files=changed(
            'model_types=("llada",),', 'model_types=("llada",), converter="dllm_core.models.loading:read_config",'
        ),
    ),
    broken(
        "test_entry_point_names_a_module", "object", "names an object, no module", target="{package}.plugin:__doc__"
    ),
    broken("test_entry_point_names_a_module", "upper_entry_point", "is called Acme", plugin="Acme"),
    broken("test_requirement_on_core_is_bounded", "unbounded", "takes any later core", requires="dllm-core>=0.1"),
    broken("test_requirement_on_core_is_bounded", "no_requirement", "does not require the core", requires=None),
    broken(
        "test_readme_names_every_component",
        "thin_readme",
        "leaves a component out of the readme",
        readme="The family `acme`, `acme-tiny` and `table-1`, for calmness.",
    ),
    broken(
        "test_bundled_checkpoints_are_plain_data",
        "pickle",
        "ships a pickle, which runs code when it is read",
        files={"checkpoints/tiny/optimizer.pt": ""},
    ),
    broken(
        "test_bundled_checkpoints_are_plain_data",
        "no_weights",
        "forgets the weights",
        files={"checkpoints/tiny/model.safetensors": None},
    ),
    broken(
        "test_bundled_checkpoints_are_plain_data",
        "elsewhere",
        "names a folder outside its package",
        files=changed("{package}:checkpoints/tiny", "{package}:../checkpoint"),
    ),
    broken(
        "test_bundled_checkpoints_load",
        "no_tokenizer",
        "forgets the tokenizer",
        files={"checkpoints/tiny/tokenizer.json": None, "checkpoints/tiny/tokenizer_config.json": None},
    ),
    broken(
        "test_bundled_checkpoints_load",
        "long_prompt",
        "has a demonstration prompt longer than the context",
        files=changed('"add 1 2"', '"1" * 80'),
    ),
    broken(
        "test_recipes_are_read",
        "misspelt_recipe",
        "misspells a key of a recipe",
        files={"recipes/small.yaml": RECIPE.replace("builder", "bilder")},
    ),
]
