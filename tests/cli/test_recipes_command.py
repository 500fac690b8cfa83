"""`dllm recipes`: what is installed, one recipe as it is shipped, and both for programs."""

from __future__ import annotations

import json

from click.testing import CliRunner

from dllm_core.cli.recipes import command
from dllm_core.errors import UnknownComponentError
from dllm_core.plugins import load_plugins, use_plugin_host
from dllm_core.training.recipes import find_recipes, load_recipe, parse_recipe


def invoke(*arguments: str):
    return CliRunner().invoke(command, arguments)


def test_all_are_listed_with_their_summaries():
    found = find_recipes()
    lines = invoke().stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(found)
    assert all(load_recipe(file).summary in line for line, file in zip(lines, found.values(), strict=True))
    assert invoke("list").stdout.splitlines() == lines


def test_the_listing_for_programs():
    rows = json.loads(invoke("--json").stdout)
    assert rows == json.loads(invoke("list", "--json").stdout)
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == list(find_recipes())
    assert by_name["llada/llada-tiny-block"]["model"] == "llada-tiny"
    assert by_name["llada/llada-tiny-block"]["objective"] == "bd3lm"


def test_one_is_shown_as_it_is_shipped():
    file = find_recipes()["llada/llada-tiny-sft"]
    assert invoke("show", "llada-tiny-sft").stdout == file.read_text(encoding="utf-8")
    shown = json.loads(invoke("show", "llada/llada-tiny-sft", "--json").stdout)
    assert shown.pop("file") == str(file)
    assert parse_recipe(shown) == load_recipe(file)  # defaults written out


def test_an_unknown_one():
    result = invoke("show", "llada-tiny-sfd")
    assert isinstance(result.exception, UnknownComponentError)
    assert "Did you mean 'llada-tiny-sft'" in str(result.exception)


def test_none_installed():
    with use_plugin_host(load_plugins(entry_points=[])):
        assert "No installed plugin ships a recipe" in invoke().stdout
        assert json.loads(invoke("--json").stdout) == []
