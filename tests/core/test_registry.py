"""From a name to a component: short names, full ids, suggestions, and targets that are fetched when they are used."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dllm_core import registry
from dllm_core.errors import AmbiguousComponentError, ComponentLoadError, UnknownComponentError
from dllm_core.hookspecs import EvalPresetSpec, SamplerSpec
from dllm_core.plugins import import_string, load_plugins, use_plugin_host

ACME = """
    @hookimpl
    def dllm_samplers():
        yield SamplerSpec(name="calm", summary="s", target="acme_parts:Calm", source="original", defaults={"steps": 4})
        yield SamplerSpec(name="shared", summary="s", target="acme_parts:Shared", source="original")
        yield CommitRuleSpec(name="shared", summary="s", target="acme_parts:Rule.Inner", source="original")
        yield CachePolicySpec(name="absent", summary="s", target="acme_parts:Absent", source="original")
        yield CachePolicySpec(name="thirsty", summary="s", target="acme_thirsty:Cache", source="original")
        yield CachePolicySpec(name="exits", summary="s", target="acme_exits:Cache", source="original")
        yield CachePolicySpec(name="nowhere", summary="s", target="acme_nowhere:Cache", source="original")

    @hookimpl
    def dllm_model_adapters():
        yield ModelAdapterSpec(
            name="acme", summary="s", target="acme_parts:Adapter", source="original", model_types=("acme", "shared"),
            bundled=(
                BundledCheckpoint(name="acme-tiny", summary="s", resource="acme_data:checkpoints/tiny"),
                BundledCheckpoint(name="lost", summary="s", resource="acme_data:checkpoints/lost"),
                BundledCheckpoint(name="twin", summary="s", resource="acme_data:checkpoints/tiny"),
            ),
        )

    @hookimpl
    def dllm_eval_tasks():
        yield EvalTaskSpec(name="sums", summary="s", target="acme_data:tasks/sums", source="original")
        yield EvalPresetSpec(name="paper", summary="s", target="acme_data:presets/paper.yaml", source="original")
        yield EvalPresetSpec(name="astray", summary="s", target="no_such_package:paper.yaml", source="original")
"""
BOLD = """
    @hookimpl
    def dllm_samplers():
        yield SamplerSpec(name="shared", summary="s", target="acme_parts:Shared", source="original")

    @hookimpl
    def dllm_model_adapters():
        yield ModelAdapterSpec(
            name="bold", summary="s", target="acme_parts:Adapter", source="original", model_types=("bold", "shared"),
            bundled=(BundledCheckpoint(name="twin", summary="s", resource="acme_data:checkpoints/tiny"),),
        )
"""
PARTS = """
class Calm: ...
class Shared: ...
class Adapter: ...
class Rule:
    class Inner: ...
"""


@pytest.fixture
def installed(distributions, tmp_path: Path):
    """The plugins acme and bold, and what their import strings name."""
    (tmp_path / "acme_parts.py").write_text(PARTS)
    (tmp_path / "acme_thirsty.py").write_text("import einops_of_tomorrow")
    (tmp_path / "acme_exits.py").write_text("raise SystemExit(1)")
    for file in ("checkpoints/tiny/config.json", "tasks/sums/sums.yaml", "presets/paper.yaml"):
        (tmp_path / "acme_data" / file).parent.mkdir(parents=True)
        (tmp_path / "acme_data" / file).touch()
    (tmp_path / "acme_data/__init__.py").write_text("raise RuntimeError('not to be imported for its files')")
    with use_plugin_host(load_plugins(entry_points=[distributions("acme", ACME), distributions("bold", BOLD)])) as host:
        yield host


@pytest.mark.usefixtures("installed")
def test_components_are_listed_without_importing_them() -> None:
    assert [component.full_id for component in registry.components("sampler")] == [
        "core/mdlm",
        "core/bd3lm",
        "acme/calm",
        "acme/shared",
        "bold/shared",
    ]
    assert [component.name for component in registry.components("eval preset")] == ["paper", "astray"]
    assert "acme_parts" not in sys.modules


@pytest.mark.usefixtures("installed")
def test_short_name_and_full_id_find_the_same_component() -> None:
    component = registry.find("sampler", "calm")
    assert component == registry.find("sampler", "acme/calm")
    assert (component.plugin, component.spec.defaults) == ("acme", {"steps": 4})
    assert "acme_parts" not in sys.modules


@pytest.mark.usefixtures("installed")
def test_loading_gives_the_object_itself() -> None:
    from acme_parts import Calm, Rule

    assert registry.load("sampler", "calm") is Calm
    assert registry.load("commit rule", "shared") is Rule.Inner  # unique among commit rules


@pytest.mark.usefixtures("installed")
def test_a_name_that_two_plugins_use_names_both() -> None:
    with pytest.raises(AmbiguousComponentError) as caught:
        registry.find("sampler", "shared")
    assert str(caught.value) == "sampler 'shared' is offered by acme and bold; write acme/shared or bold/shared"
    assert registry.find("sampler", "bold/shared").plugin == "bold"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("calms", " Did you mean 'calm'?"),
        ("CALM", " Did you mean 'calm'?"),
        ("bold/share", " Did you mean 'bold/shared'?"),
        ("bold/calm", " Did you mean 'calm'?"),
        ("qqq", ""),
    ],
)
def test_an_unknown_name_says_what_is_near_and_what_there_is(name: str, suggestion: str) -> None:
    with pytest.raises(UnknownComponentError) as caught:
        registry.load("sampler", name)
    expected = f"unknown sampler {name!r}.{suggestion} Installed: mdlm, bd3lm, calm, acme/shared, bold/shared."
    assert str(caught.value) == expected
    assert caught.value.exit_code == 2


def test_an_unknown_name_points_at_plugins_that_did_not_load(distributions) -> None:
    entry_points = [distributions("dream", "import einops_of_tomorrow"), distributions("bold", BOLD)]
    host = load_plugins(entry_points=entry_points, only=["dream"])
    with use_plugin_host(host), pytest.raises(UnknownComponentError) as caught:
        registry.find("eval preset", "sums")
    assert str(caught.value) == (
        "unknown eval preset 'sums'. Installed: none. Plugin 'dream' failed to load and may provide it "
        "('dllm plugins' says why). Plugin 'bold' is switched off by DLLM_PLUGINS."
    )


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "reason", "cause"),
    [
        ("absent", "AttributeError: module 'acme_parts' has no attribute 'Absent'", AttributeError),
        ("thirsty", "No module named 'einops_of_tomorrow'", ModuleNotFoundError),
        ("nowhere", "No module named 'acme_nowhere'", ModuleNotFoundError),
        ("exits", "it called sys.exit(1)", SystemExit),
    ],
)
def test_a_target_that_does_not_import_names_plugin_component_and_cause(name: str, reason: str, cause: type) -> None:
    with pytest.raises(ComponentLoadError) as caught:
        registry.load("cache policy", name)
    assert str(caught.value).startswith(f"cache policy 'acme/{name}' of plugin 'acme' cannot be loaded: ")
    assert str(caught.value).endswith(f"{reason}   [dllm plugins show acme]")
    assert type(caught.value.__cause__) is cause


def test_import_strings() -> None:
    assert import_string("json:dumps") is json.dumps
    assert import_string("json:JSONDecoder.decode") is json.JSONDecoder.decode
    for malformed in ("json", "json:", ":dumps", "..json:dumps"):
        with pytest.raises(ComponentLoadError, match=f"cannot import '{malformed}': "):
            import_string(malformed)


@pytest.mark.usefixtures("installed")
def test_the_adapter_of_a_model_type() -> None:
    assert registry.adapter_for_model_type("acme").full_id == "acme/acme"
    assert registry.adapter_for_model_type("unheard") is None
    with pytest.raises(AmbiguousComponentError) as caught:
        registry.adapter_for_model_type("shared")
    assert str(caught.value) == (
        "several plugins serve model_type 'shared'; choose with adapter='acme/acme' or adapter='bold/bold'"
    )


@pytest.mark.usefixtures("installed")
def test_bundled_checkpoints_are_folders_inside_a_package_that_is_not_imported(tmp_path: Path) -> None:
    listed = [(plugin, checkpoint.name) for plugin, checkpoint in registry.bundled_checkpoints()]
    assert listed == [("acme", "acme-tiny"), ("acme", "lost"), ("acme", "twin"), ("bold", "twin")]
    assert registry.find_bundled("acme-tiny") == tmp_path / "acme_data/checkpoints/tiny"
    assert registry.find_bundled("acme/acme-tiny") == registry.find_bundled("bold/twin")
    assert registry.find_bundled("unheard") is None
    with pytest.raises(AmbiguousComponentError, match="write acme/twin or bold/twin"):
        registry.find_bundled("twin")
    with pytest.raises(ComponentLoadError, match="the package 'acme_data' holds no 'checkpoints/lost'"):
        registry.find_bundled("lost")


@pytest.mark.usefixtures("installed")
def test_tasks_and_presets_load_as_paths(tmp_path: Path) -> None:
    assert registry.load("eval task", "sums") == tmp_path / "acme_data/tasks/sums"
    assert registry.load("eval preset", "paper") == tmp_path / "acme_data/presets/paper.yaml"
    with pytest.raises(ComponentLoadError, match=r"'acme/astray' of plugin 'acme' .* no package 'no_such_package'"):
        registry.load("eval preset", "astray")


def sampler_spec(target: str) -> SamplerSpec:
    return SamplerSpec(name="x", summary="s", target=target, source="original")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("acme_parts:Calm", None),
        ("acme_parts:Rule.Inner", None),
        ("acme_parts:Clam", "module 'acme_parts' has no 'Clam'. Did you mean 'Calm'?"),
        ("acme_parts.deeper:Calm", "there is no module 'acme_parts.deeper'"),
        ("acme_nowhere:Calm", "there is no module 'acme_nowhere'"),
        ("acme_data.sub.deep:Calm", "there is no module 'acme_data.sub.deep'"),
        ("acme_lazy:Anything", None),
        ("acme_star:Anything", None),
        ("acme_names:one", None),
        ("acme_names:two", None),
        ("acme_names:three", None),
        ("acme_names:local", "module 'acme_names' has no 'local'."),
        ("math:pi", None),
    ],
)
def test_a_target_is_checked_without_being_imported(tmp_path: Path, target: str, problem: str | None) -> None:
    (tmp_path / "acme_lazy.py").write_text("def __getattr__(name): return name")
    (tmp_path / "acme_star.py").write_text("from acme_parts import *")
    (tmp_path / "acme_names.py").write_text(
        "import os.path as one\ntry:\n    from a import b as two\nexcept ImportError:\n    two = None\n"
        "three: int = 3\ndef four():\n    local = 1\n"
    )
    assert registry.target_problem(sampler_spec(target)) == problem
    assert not {"acme_parts", "acme_lazy", "acme_star", "acme_names"} & set(sys.modules)


@pytest.mark.usefixtures("installed")
def test_a_target_in_a_file_that_is_not_python(tmp_path: Path) -> None:
    (tmp_path / "acme_torn.py").write_text("def (")
    problem = registry.target_problem(sampler_spec("acme_torn:X"))
    assert problem.startswith("module 'acme_torn' is not Python: ")
    preset = EvalPresetSpec(name="x", summary="s", target="acme_data:presets/gone.yaml", source="original")
    assert "holds no 'presets/gone.yaml'" in registry.target_problem(preset)


@pytest.mark.parametrize("kind", ["objective", "sampler", "commit rule", "cache policy"])
def test_every_part_of_the_core_resolves(kind: str) -> None:
    with use_plugin_host(load_plugins(entry_points=[])):
        parts: list[Callable] = [registry.load(kind, part.full_id) for part in registry.components(kind)]
    assert parts
    assert all(isinstance(part, type) for part in parts)
