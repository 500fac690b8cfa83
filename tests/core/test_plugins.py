"""The plugin host: whatever one plugin does, the others and the core are there."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint

import pytest

from dllm_core import CommitRuleSpec, ModelAdapterSpec, SamplerSpec
from dllm_core.plugins import PluginHost, PluginRecord, load_plugins, plugin_host, use_plugin_host

GOOD = """
    @hookimpl
    def dllm_samplers():
        yield SamplerSpec(name="calm", summary="a sampler", target="m:C", source="original")
        yield CommitRuleSpec(name="all", summary="a rule", target="m:R", source="original")
"""
OBJECTIVE = 'ObjectiveSpec(name="x", summary="s", target="m:X", source="original")'

# What a plugin's module may do wrong, and the one line that is said of it.
BROKEN = {
    "missing import": ("import einops_of_tomorrow", "No module named 'einops_of_tomorrow'"),
    "error at import": ("1 / 0", "ZeroDivisionError: division by zero"),
    "exit at import": ("raise SystemExit(3)", r"it called sys.exit\(3\)"),
    "outlandish exception": ("class Odd(BaseException): ...\nraise Odd('away')", "Odd: away"),
    "exception that cannot be shown": (
        "class Odd(Exception):\n    def __str__(self): 1 / 0\nraise Odd",
        "Odd",
    ),
    "endless text": ("raise ValueError('x' * 1000)", "ValueError: x{300} \\.\\.\\."),
    "no hook": ("", "nothing in it is marked with @hookimpl"),
    "hook without its mark": (
        "def dllm_samplers(): ...\n@hookimpl\ndef dllm_objectives(): return []",
        "dllm_samplers is not marked with @hookimpl",
    ),
    "error without text": ("raise RuntimeError", "RuntimeError"),
    "error of many lines": ("raise ValueError('first\\nsecond')", "ValueError: first second"),
    "syntax error": ("def (", "SyntaxError: .*"),
    "wrong signature": (
        "@hookimpl\ndef dllm_samplers(register): ...",
        r".*hook 'dllm_samplers'.*Argument\(s\) \{'register'\}.*",
    ),
    "misspelt hook": (
        "@hookimpl\ndef dllm_sampler(): ...",
        r"unknown hook 'dllm_sampler'\. Did you mean 'dllm_samplers'\? The hooks are dllm_objectives, .*",
    ),
    "wrapper of others": (
        "@hookimpl(wrapper=True)\ndef dllm_samplers():\n    return (yield)",
        "dllm_samplers is a hook wrapper; a plugin can only add components of its own",
    ),
    "raising hook": ("@hookimpl\ndef dllm_samplers(): 1 / 0", "dllm_samplers: ZeroDivisionError: division by zero"),
    "raising generator": (
        f"@hookimpl\ndef dllm_objectives():\n    yield {OBJECTIVE}\n    1 / 0",
        "dllm_objectives: ZeroDivisionError: division by zero",
    ),
    "exit in a hook": ("@hookimpl\ndef dllm_samplers(): raise SystemExit", r"dllm_samplers: it called sys.exit\(\).*"),
    "returns nothing": (
        "@hookimpl\ndef dllm_objectives(): ...",
        "dllm_objectives: returned NoneType; yield ObjectiveSpec, or return a list",
    ),
    "returns one spec": (
        f"@hookimpl\ndef dllm_objectives(): return {OBJECTIVE}",
        "dllm_objectives: returned ObjectiveSpec; yield ObjectiveSpec, or return a list",
    ),
    "yields text": (
        "@hookimpl\ndef dllm_samplers(): yield 'calm'",
        "dllm_samplers: yielded 'calm', expected SamplerSpec or CommitRuleSpec or CachePolicySpec",
    ),
    "yields the wrong kind": (
        f"@hookimpl\ndef dllm_samplers(): yield {OBJECTIVE}",
        "dllm_samplers: yielded ObjectiveSpec.*, expected SamplerSpec or CommitRuleSpec or CachePolicySpec",
    ),
    "one name twice": (
        f"@hookimpl\ndef dllm_objectives(): return [{OBJECTIVE}] * 2",
        "dllm_objectives: two components of type ObjectiveSpec are named 'x'",
    ),
    "endless": (
        f"@hookimpl\ndef dllm_objectives():\n    while True: yield {OBJECTIVE}",
        "dllm_objectives: two components of type ObjectiveSpec are named 'x'",
    ),
    "field missing": (
        "@hookimpl\ndef dllm_objectives(): yield ObjectiveSpec(name='x')",
        "dllm_objectives: TypeError: .*missing.*'summary', 'target', and 'source'",
    ),
    "field of the wrong type": (
        "@hookimpl\ndef dllm_objectives(): yield ObjectiveSpec(name='x', summary=None, target='m:X', source='s')",
        "dllm_objectives: ObjectiveSpec 'x': summary must be text, got None",
    ),
    "name with a slash": (
        "@hookimpl\ndef dllm_objectives(): yield ObjectiveSpec(name='a/b', summary='s', target='m:X', source='s')",
        "dllm_objectives: ObjectiveSpec 'a/b': a name must not be empty, nor hold '/' or spaces",
    ),
    "target without attribute": (
        "@hookimpl\ndef dllm_objectives(): yield ObjectiveSpec(name='x', summary='s', target='m.X', source='s')",
        "dllm_objectives: ObjectiveSpec 'x': target must have the form 'package.module:attribute', got 'm.X'",
    ),
    "model types as text": (
        "@hookimpl\ndef dllm_model_adapters():\n"
        "    yield ModelAdapterSpec(name='x', summary='s', target='m:X', source='s', model_types='acme')",
        "dllm_model_adapters: ModelAdapterSpec 'x': model_types must be a tuple of str, got 'acme'",
    ),
    "defaults as text": (
        "@hookimpl\ndef dllm_samplers():\n"
        "    yield SamplerSpec(name='x', summary='s', target='m:X', source='s', defaults='steps=4')",
        "dllm_samplers: SamplerSpec 'x': defaults must be a dict of options, got 'steps=4'",
    ),
    "families as text": (
        "@hookimpl\ndef dllm_samplers():\n"
        "    yield SamplerSpec(name='x', summary='s', target='m:X', source='s', families='acme')",
        "dllm_samplers: SamplerSpec 'x': families must be a tuple of str, got 'acme'",
    ),
    "one demo prompt": (
        "@hookimpl\ndef dllm_model_adapters():\n"
        "    tiny = BundledCheckpoint(name='t', summary='s', resource='p:t', demo_prompts='hello')\n"
        "    yield ModelAdapterSpec(\n"
        "        name='x', summary='s', target='m:X', source='s', model_types=(), bundled=(tiny,))",
        "dllm_model_adapters: ModelAdapterSpec 'x': checkpoint t: demo_prompts must be a tuple of str, got 'hello'",
    ),
    "checkpoint as text": (
        "@hookimpl\ndef dllm_model_adapters():\n"
        "    yield ModelAdapterSpec(name='x', summary='s', target='m:X', source='s', model_types=(), bundled=('a',))",
        r"dllm_model_adapters: ModelAdapterSpec 'x': bundled must be a tuple of BundledCheckpoint, got \('a',\)",
    ),
}


def record(host: PluginHost, name: str) -> PluginRecord:
    (found,) = [record for record in host.records if record.name == name]
    return found


def names(host: PluginHost, spec_type: type) -> list[str]:
    return [f"{plugin}/{spec.name}" for plugin, spec in host.specs(spec_type)]


@pytest.mark.parametrize(("source", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_costs_itself_only(distributions, source: str, message: str) -> None:
    entry_points = [distributions("zeal", GOOD), distributions("acme", source), distributions("bold", GOOD)]
    host = load_plugins(entry_points=entry_points)
    broken = record(host, "acme")
    assert (broken.state, broken.specs) == ("broken", ())
    assert re.fullmatch(message, broken.error)
    assert "Error" in broken.traceback or "Odd" in broken.traceback or "SystemExit" in broken.traceback
    assert [record(host, name).state for name in ("core", "bold", "zeal")] == ["ok"] * 3
    assert names(host, SamplerSpec) == ["core/mdlm", "core/bd3lm", "bold/calm", "zeal/calm"]
    assert host.warnings() == [f"plugin 'acme' (dllm-acme 1.0) not loaded: {broken.error}   [dllm plugins show acme]"]


@pytest.mark.parametrize("hook", ["dllm_objectives", "dllm_eval_tasks"])  # asked before and after the good one
def test_a_failing_hook_leaves_the_plugins_other_hooks(distributions, hook: str) -> None:
    source = GOOD + f"\n    @hookimpl\n    def {hook}(): 1 / 0"
    host = load_plugins(entry_points=[distributions("acme", source)])
    acme = record(host, "acme")
    assert (acme.state, acme.error) == ("broken", f"{hook}: ZeroDivisionError: division by zero")
    assert [spec.name for spec in acme.specs] == ["calm", "all"]
    assert names(host, SamplerSpec) == ["core/mdlm", "core/bd3lm", "acme/calm"]
    assert host.warnings()[0].startswith(f"plugin 'acme' (dllm-acme 1.0) partly loaded: {hook}: ")


def test_every_failing_hook_is_named(distributions) -> None:
    source = "@hookimpl\ndef dllm_samplers(): 1 / 0\n@hookimpl\ndef dllm_objectives(): [][0]"
    acme = record(load_plugins(entry_points=[distributions("acme", source)]), "acme")
    assert acme.error == (
        "dllm_objectives: IndexError: list index out of range; dllm_samplers: ZeroDivisionError: division by zero"
    )
    assert acme.traceback.count("Traceback") == 2


def test_a_misspelt_hook_takes_the_whole_plugin_back_out(distributions) -> None:
    source = GOOD + "\n    @hookimpl\n    def dllm_objective(): ..."
    host = load_plugins(entry_points=[distributions("acme", source)])
    assert record(host, "acme").specs == ()
    assert names(host, CommitRuleSpec) == ["core/quota"]


def test_a_hook_of_a_later_core_may_be_marked_optional(distributions) -> None:
    source = GOOD + "\n    @hookimpl(optionalhook=True)\n    def dllm_of_tomorrow(): ..."
    assert record(load_plugins(entry_points=[distributions("acme", source)]), "acme").state == "ok"


def test_entry_points_that_name_nothing(distributions) -> None:
    host = load_plugins(
        entry_points=[
            distributions("gone", None),
            distributions("bare", GOOD, target="dllm_bare_plugin:Absent"),
            distributions("odd", None, target="not a module"),
        ]
    )
    assert record(host, "gone").error == "No module named 'dllm_gone_plugin'"
    assert record(host, "bare").error == "AttributeError: module 'dllm_bare_plugin' has no attribute 'Absent'"
    assert record(host, "odd").state == "broken"


def test_one_module_under_two_names_is_not_counted_twice(distributions) -> None:
    first = distributions("acme", GOOD)
    host = load_plugins(entry_points=[first, distributions("bold", None, target=first.value)])
    assert [record(host, name).state for name in ("acme", "bold")] == ["ok", "broken"]
    assert names(host, SamplerSpec) == ["core/mdlm", "core/bd3lm", "acme/calm"]


def test_two_distributions_of_one_name_are_both_left_out(distributions) -> None:
    host = load_plugins(
        entry_points=[
            distributions("acme", GOOD, distribution="acme-one"),
            distributions("acme", GOOD, distribution="acme-two", version="2.0"),
            distributions("bold", GOOD),
        ]
    )
    acme = record(host, "acme")
    assert (acme.state, acme.specs) == ("conflict", ())
    assert acme.error == "acme-one 1.0 and acme-two 2.0 both offer a plugin of this name; uninstall one of them"
    assert names(host, SamplerSpec) == ["core/mdlm", "core/bd3lm", "bold/calm"]
    assert len(host.warnings()) == 1
    assert not {"acme_one_plugin", "acme_two_plugin"} & set(sys.modules)


def test_nobody_takes_the_name_of_the_core(distributions) -> None:
    host = load_plugins(entry_points=[distributions("core", GOOD, distribution="impostor")])
    assert [found.state for found in host.records if found.name == "core"] == ["ok", "conflict"]
    assert names(host, SamplerSpec) == ["core/mdlm", "core/bd3lm"]
    assert "impostor 1.0 takes the name 'core'" in host.warnings()[0]


@pytest.mark.parametrize("requires", ["dllm-core>=99", "dllm-core<0.1", "dllm-core~=2.0", "dllm-core==99.*"])
def test_a_plugin_for_another_core_is_not_even_imported(distributions, requires: str) -> None:
    host = load_plugins(entry_points=[distributions("acme", GOOD, requires=requires)], core_version="0.1.0")
    acme = record(host, "acme")
    assert (acme.state, acme.error) == ("incompatible", f"needs {requires}, this is dllm-core 0.1.0")
    assert "dllm_acme_plugin" not in sys.modules


def test_a_requirement_that_cannot_be_read_is_the_plugins_fault(distributions) -> None:
    acme = record(load_plugins(entry_points=[distributions("acme", GOOD, requires="dllm-core>=?")]), "acme")
    assert acme.state == "broken"
    assert acme.error.startswith("its requirement on dllm-core cannot be read: ")


def test_a_plugin_without_requirement_or_metadata_still_loads(distributions) -> None:
    distributions("acme", GOOD)
    bare = EntryPoint(name="acme", value="dllm_acme_plugin", group="dllm")
    acme = record(load_plugins(entry_points=[bare]), "acme")
    assert (acme.state, acme.distribution, acme.version) == ("ok", "unknown", "?")
    free = record(load_plugins(entry_points=[distributions("free", GOOD, requires=None)]), "free")
    assert (free.state, free.requires_core) == ("ok", None)


def test_only_the_plugins_asked_for_are_imported(distributions) -> None:
    entry_points = [distributions("acme", GOOD), distributions("bold", GOOD)]
    host = load_plugins(entry_points=entry_points, only=["acme", "bolt"])
    assert [(found.name, found.state) for found in host.records] == [
        ("core", "ok"),
        ("acme", "ok"),
        ("bold", "disabled"),
    ]
    assert "dllm_bold_plugin" not in sys.modules
    assert host.warnings() == ["DLLM_PLUGINS asks for 'bolt', which is not installed. Did you mean 'bold'?"]
    assert names(load_plugins(entry_points=entry_points, only=[]), SamplerSpec) == ["core/mdlm", "core/bd3lm"]


def test_an_interrupt_is_the_users_and_passes(distributions) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_plugins(entry_points=[distributions("acme", "raise KeyboardInterrupt")])


def test_what_a_plugin_prints_does_not_reach_stdout(distributions, capsys: pytest.CaptureFixture[str]) -> None:
    source = "print('hello')\n@hookimpl\ndef dllm_samplers():\n    print('there')\n    return []"
    assert record(load_plugins(entry_points=[distributions("acme", source)]), "acme").state == "ok"
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\nthere\n")


def test_a_record_tells_where_the_plugin_is_and_what_it_needs(distributions, tmp_path) -> None:
    acme = record(load_plugins(entry_points=[distributions("acme", GOOD, version="0.3.1")]), "acme")
    assert (acme.title, acme.version, acme.requires_core) == (
        "'acme' (dllm-acme 0.3.1)",
        "0.3.1",
        "dllm-core<0.2,>=0.1",
    )
    assert acme.location == str(tmp_path / "dllm_acme_plugin.py")
    assert [spec.name for spec in acme.of(CommitRuleSpec)] == ["all"]
    assert acme.of(ModelAdapterSpec) == ()
    assert record(load_plugins(entry_points=[distributions("gone", None)]), "gone").location is None


def test_the_cores_own_parts_come_through_the_same_hooks() -> None:
    core = record(load_plugins(entry_points=[]), "core")
    assert (core.state, core.error) == ("ok", None)
    assert {spec.target.partition(":")[0].split(".")[0] for spec in core.specs} == {"dllm_core"}


def test_tests_can_use_a_host_of_their_own() -> None:
    installed, mine = plugin_host(), load_plugins(entry_points=[])
    with use_plugin_host(mine):
        assert plugin_host() is mine
        with use_plugin_host(installed):
            assert plugin_host() is installed
        assert plugin_host() is mine
    assert plugin_host() is installed
