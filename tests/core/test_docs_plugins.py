"""docs/plugins.md says what is so: its examples run, its tables are complete."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import get_args

import pytest

from dllm_core import CommitRuleSpec, registry
from dllm_core.errors import AmbiguousComponentError, UnknownComponentError
from dllm_core.plugins import HEAVY_MODULES, HOOKS, KINDS, State, load_plugins, use_plugin_host

TEXT = (Path(__file__).parents[2] / "docs/plugins.md").read_text(encoding="utf-8")
CALM = """
    @hookimpl
    def dllm_samplers():
        yield SamplerSpec(name="calm", summary="s", target="m:X", source="original")
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def lines(language: str) -> list[str]:
    return [line for block in blocks(language) for line in block.splitlines()]


def test_the_tables_are_complete() -> None:
    for hook, spec_types in HOOKS.items():
        (row,) = re.findall(rf"^\| `{hook}` .*$", TEXT, re.MULTILINE)
        assert all(f"`{spec_type.__name__}`" in row for spec_type in spec_types)
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)[len(HOOKS) :] == list(get_args(State))
    assert all(f"`{kind}`" in TEXT for kind in KINDS)
    assert all(module in TEXT for module in HEAVY_MODULES)


def test_the_example_plugin_loads(distributions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, python, test = blocks("python")
    (tmp_path / "dllm_acme").mkdir()
    (tmp_path / "dllm_acme/__init__.py").touch()
    (tmp_path / "dllm_acme/plugin.py").write_text(plugin, encoding="utf-8")
    acme = EntryPoint(name="acme", value="dllm_acme.plugin", group="dllm")
    host = load_plugins(entry_points=[acme])
    assert [f"{name}/{spec.name}" for name, spec in host.specs(CommitRuleSpec)] == ["core/quota", "acme/pairs"]
    exec(compile(python, "docs/plugins.md", "exec"), {})
    exec(compile(test, "docs/plugins.md", "exec"), {})
    assert "dllm_acme.plugin" in sys.modules


def test_the_lines_that_users_see_are_these(distributions) -> None:
    entry_points = [distributions("acme", CALM, distribution="calm-acme"), distributions("bold", CALM)]
    with use_plugin_host(load_plugins(entry_points=entry_points)), pytest.raises(AmbiguousComponentError) as ambiguous:
        registry.find("sampler", "calm")
    with use_plugin_host(load_plugins(entry_points=[])), pytest.raises(UnknownComponentError) as unknown:
        registry.find("sampler", "mdml")
    thirsty = distributions("acme", "import acme_kernels", distribution="dllm-acme", version="0.1.0")
    (warning,) = load_plugins(entry_points=[thirsty]).warnings()
    assert lines("text") == [f"Error: {ambiguous.value}", f"Error: {unknown.value}", f"warning: {warning}"]
