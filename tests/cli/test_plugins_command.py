"""`dllm plugins` in a process of its own, beside real distributions that are broken in every way that is known."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from dllm_core.cli.plugins import table

SAMPLER = """
@hookimpl
def dllm_samplers():
    yield SamplerSpec(name="calm", summary="a calm sampler", target="{target}", source="original")
"""
GOOD = SAMPLER.format(target="dllm_good_plugin:Calm") + "class Calm: ..."

# plugin name -> (source, requirement, state, what its one line on stderr says)
OUTSIDERS = {
    "thirsty": ("import einops_of_tomorrow", None, "broken", "not loaded: No module named 'einops_of_tomorrow'"),
    "exits": ("import sys; sys.exit(3)", None, "broken", "not loaded: it called sys.exit(3) "),
    "wrong": ("@hookimpl\ndef dllm_samplers(a): ...", None, "broken", "not loaded: Plugin 'wrong' for hook"),
    "misspelt": (
        "@hookimpl\ndef dllm_sampler(): ...",
        None,
        "broken",
        "not loaded: unknown hook 'dllm_sampler'. Did you mean 'dllm_samplers'?",
    ),
    "raises": (
        "@hookimpl\ndef dllm_samplers():\n    yield from [][0]",
        None,
        "broken",
        "not loaded: dllm_samplers: IndexError: list index out of range",
    ),
    "future": (GOOD, "dllm-core>=99", "incompatible", "not loaded: needs dllm-core>=99, this is dllm-core "),
    "heavy": ("import numpy\n" + GOOD, None, "ok", "imports numpy just to be listed, which slows every command"),
}


def dllm(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with the distributions in `folder` beside the installed ones."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "dllm_core", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "100", **environment},
    )


@pytest.fixture
def crowd(distributions, tmp_path: Path) -> Path:
    """One good plugin among all the broken ones, and two that claim one name."""
    distributions("good", GOOD)
    for plugin, (source, requires, _, _) in OUTSIDERS.items():
        distributions(plugin, source, requires=requires)
    distributions("twin", GOOD, distribution="twin-one")
    distributions("twin", GOOD, distribution="twin-two")
    distributions("lost", SAMPLER.format(target="dllm_nowhere:Sampler"))
    return tmp_path


def test_each_broken_plugin_costs_one_line_and_nothing_else(crowd: Path) -> None:
    done = dllm("plugins", folder=crowd)
    assert done.returncode == 0
    warnings = done.stderr.splitlines()
    assert len(warnings) == len(OUTSIDERS) + 1
    for plugin, (_, _, _, text) in OUTSIDERS.items():
        (line,) = [line for line in warnings if line.startswith(f"warning: plugin '{plugin}' (dllm-{plugin} 1.0) ")]
        assert text in line
        assert line.endswith(f"   [dllm plugins show {plugin}]")
    assert any("twin-one 1.0 and twin-two 1.0 both offer a plugin of this name" in line for line in warnings)
    states = dict(re.findall(r"^(\w+) +[\d., ]+ +(\w+)", done.stdout, re.MULTILINE))
    expected = {plugin: state for plugin, (_, _, state, _) in OUTSIDERS.items()}
    assert expected.items() <= states.items()
    assert (states["core"], states["good"], states["lost"], states["twin"]) == ("ok", "ok", "ok", "conflict")


def test_a_slow_plugin_is_named(distributions, tmp_path: Path) -> None:
    distributions("slow", "import time; time.sleep(1.1)\n" + GOOD)
    done = dllm("plugins", folder=tmp_path)
    said = (
        r"warning: plugin 'slow' \(dllm-slow 1.0\) takes \d+\.\d s just to be listed, which slows every command   .*\n"
    )
    assert re.fullmatch(said, done.stderr)


def test_json_stays_json_whatever_the_plugins_do(crowd: Path, distributions) -> None:
    distributions("chatty", "print('hello')\n" + GOOD)
    done = dllm("plugins", "--json", folder=crowd)
    listed = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert done.returncode == 0
    assert listed["thirsty"]["status"] == "broken"
    assert listed["thirsty"]["error"] == "No module named 'einops_of_tomorrow'"
    assert listed["heavy"]["notes"] == ["imports numpy just to be listed, which slows every command"]
    assert listed["chatty"]["components"] == [
        {
            "id": "chatty/calm",
            "kind": "sampler",
            "summary": "a calm sampler",
            "source": "original",
            "target": "dllm_good_plugin:Calm",
        }
    ]
    assert dllm("plugins", "list", "--json", folder=crowd).stdout == done.stdout
    assert dllm("plugins", "--json", "list", folder=crowd).stdout == done.stdout


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ("thirsty", ["broken", "Traceback", "import einops_of_tomorrow", "ModuleNotFoundError"]),
        ("exits", ["broken", "SystemExit: 3"]),
        ("misspelt", ["broken", "unknown hook 'dllm_sampler'", "The hooks are dllm_objectives, dllm_model_adapters"]),
        ("raises", ["broken", "Traceback", "yield from [][0]"]),
        ("future", ["incompatible", "dllm-core>=99 (this is "]),
        ("twin", ["conflict", "twin-one, twin-two", "uninstall one of them"]),
        ("heavy", ["ok", "imports numpy just to be listed", "heavy/calm"]),
        ("lost", ["ok", "lost/calm", "there is no module 'dllm_nowhere'"]),
    ],
)
def test_show_explains(crowd: Path, plugin: str, said: list[str]) -> None:
    done = dllm("plugins", "show", plugin, folder=crowd)
    assert (done.returncode, done.stderr) == (0, "")
    for text in said:
        assert text in done.stdout
    (data,) = json.loads(dllm("plugins", "show", plugin, "--json", folder=crowd).stdout)
    assert data["status"] == said[0]
    assert (data["traceback"] is not None) == ("Traceback" in done.stdout)


def test_show_of_a_plugin_that_is_not_there_suggests(tmp_path: Path) -> None:
    done = dllm("plugins", "show", "cor", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: no plugin 'cor' is installed. Did you mean 'core'? Installed: core, ")


def test_dllm_plugins_allows_and_forbids(crowd: Path) -> None:
    done = dllm("plugins", "--json", folder=crowd, DLLM_PLUGINS="good, goof")
    states = {entry["name"]: entry["status"] for entry in json.loads(done.stdout)}
    assert {name for name, state in states.items() if state == "ok"} == {"core", "good"}
    assert set(states.values()) == {"ok", "disabled"}
    assert done.stderr == "warning: DLLM_PLUGINS asks for 'goof', which is not installed. Did you mean 'good'?\n"

    done = dllm("plugins", "--json", folder=crowd, DLLM_PLUGINS="")
    assert [entry["name"] for entry in json.loads(done.stdout) if entry["status"] == "ok"] == ["core"]
    assert done.stderr == ""


def test_dllm_debug_shows_tracebacks(crowd: Path) -> None:
    assert "Traceback" not in dllm("plugins", folder=crowd).stderr
    assert dllm("plugins", folder=crowd, DLLM_DEBUG="1").stderr.count("Traceback") >= 5


def test_entry_points_that_cannot_be_read_leave_the_core(distributions, tmp_path: Path) -> None:
    distributions("torn", GOOD)
    (tmp_path / "dllm_torn-1.0.dist-info/entry_points.txt").write_text("[dllm]\nnot an entry point\n")
    done = dllm("plugins", folder=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].startswith("core ")
    assert len(done.stderr.splitlines()) == 1


def test_a_narrow_terminal_wraps_the_last_column() -> None:
    rows = [("core", "0.1.0", "ok", "1 objective, 1 sampler, 1 commit rule"), ("a", "1", "broken", "-")]
    lines = table(("NAME", "VERSION", "STATUS", "PROVIDES"), rows, 48)
    assert [click.unstyle(line) for line in lines] == [
        "NAME  VERSION  STATUS  PROVIDES",
        "core  0.1.0    ok      1 objective, 1 sampler,",
        "                       1 commit rule",
        "a     1        broken  -",
    ]
