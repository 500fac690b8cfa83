"""Someone who has never seen this repository writes a plugin: in a new environment, from wheels, with the commands that
stand in the tutorial; and the two plugins in examples/ are installed and checked from outside the tree.

The commands' times are printed with ``pytest -m slow -s``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dllm_core.scaffold import KINDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__", ".*", "tests", "docs", "benchmarks")
NOT_ITS_OWN = ("PYTHONPATH", "VIRTUAL_ENV", "DLLM_PLUGINS")
RUN = ["--model", "llada-tiny", "sort 5219", "--max-new-tokens", "16", "--json"]
HOUR = 3600  # seconds; what the whole way may take, reading included


@dataclass
class Environment:
    """A virtual environment, the seconds that its commands took, and those of making it."""

    folder: Path
    times: list[tuple[str, float]] = field(default_factory=list)
    setup: float = 0.0

    def call(self, *command: str | Path, folder: Path) -> str:
        """stdout of a command that sees this environment only."""
        environment = {name: value for name, value in os.environ.items() if name not in NOT_ITS_OWN}
        environment["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{environment['PATH']}"
        began = time.perf_counter()
        done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
        self.times.append((" ".join(Path(str(word)).name for word in command)[:100], time.perf_counter() - began))
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def report(self, since: int = 0) -> str:
        """The times of the commands, and their sum."""
        lines = [f"{seconds:7.1f} s  {command}" for command, seconds in self.times[since:]]
        return "\n".join([*lines, f"{sum(seconds for _, seconds in self.times[since:]):7.1f} s  in all"])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A new environment with the wheels of the core and of one family, and pytest; from a copy of the sources."""
    folder = tmp_path_factory.mktemp("newcomer")
    new = Environment(folder / "env")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    new.call(sys.executable, "-m", "venv", new.folder, folder=folder)
    sources = [folder / "source", folder / "source/plugins/dllm-llada"]
    new.call("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", *sources, folder=folder)
    wheels = sorted((folder / "dist").glob("*.whl"))
    new.call("pip", "install", "--quiet", "-c", ROOT / "constraints.txt", *wheels, "pytest", folder=folder)
    new.setup = sum(seconds for _, seconds in new.times)
    return new


@pytest.fixture(scope="module")
def plain_run(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the core's own sampler answers."""
    return json.loads(environment.call("dllm", "run", *RUN, folder=tmp_path_factory.mktemp("plain")))


def checked(environment: Environment, plugin: str, folder: Path) -> dict[str, dict]:
    """The report of ``dllm plugins check``: component -> what it says; everything passed and everything is declared."""
    report = json.loads(environment.call("dllm", "plugins", "check", plugin, "--json", folder=folder))
    assert report["ok"]
    assert [c["id"] for c in report["components"] if c["not_checked"] or not c["declared"]] == []
    return {f"{component['kind']} {component['id']}": component for component in report["components"]}


def passed(component: dict) -> int:
    return sum(check["state"] == "passed" for check in component["checks"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_way_of_a_newcomer(
    kind: str, environment: Environment, plain_run: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    name, before = f"my-{kind}", len(environment.times)
    environment.call("dllm", "plugins", "new", name, "--kind", kind, folder=tmp_path)
    package = tmp_path / f"dllm-{name}"
    environment.call("pip", "install", "--quiet", "-c", ROOT / "constraints.txt", "-e", ".[test]", folder=package)
    summary = environment.call("pytest", "-q", folder=package).splitlines()[-1]
    report = checked(environment, name, tmp_path)
    assert passed(report[f"plugin {name}"]) >= 10
    own = next(component for key, component in report.items() if not key.startswith("plugin"))
    assert passed(own) >= 10
    if kind == "sampler":
        mine = json.loads(environment.call("dllm", "run", "--plugin", name, *RUN, folder=tmp_path))
        assert mine["text"] == plain_run["text"] == "1259"
        assert mine["stats"]["forward_passes"] < plain_run["stats"]["forward_passes"]
    with capsys.disabled():
        print(f"\n{kind}: {summary}\n{environment.report(before)}\n{environment.setup:7.1f} s  to make the environment")
    assert sum(seconds for _, seconds in environment.times) < HOUR


@pytest.mark.parametrize(("folder", "plugin"), [("dllm-plugin-template", "plugin-template"), ("dllm-remdm", "remdm")])
def test_the_examples_from_outside_the_tree(
    folder: str, plugin: str, environment: Environment, plain_run: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Built and installed as wheels; their tests run where their sources cannot be imported."""
    before = len(environment.times)
    without_tests = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".*_cache", "tests")
    shutil.copytree(ROOT / "examples" / folder, tmp_path / "source", ignore=without_tests)
    environment.call("pip", "install", "--quiet", "--no-deps", tmp_path / "source", folder=tmp_path)
    shutil.copytree(ROOT / "examples" / folder / "tests", tmp_path / "tests")
    environment.call("pytest", "-q", "--import-mode=importlib", "tests", folder=tmp_path)
    report = checked(environment, plugin, tmp_path)
    assert passed(report[f"sampler {plugin}/{plugin}"]) >= 20
    run = json.loads(environment.call("dllm", "run", "--plugin", plugin, *RUN, folder=tmp_path))
    assert run["text"] == plain_run["text"]
    with capsys.disabled():
        print(f"\n{folder}:\n{environment.report(before)}")


def test_nothing_is_broken(environment: Environment, tmp_path: Path) -> None:
    """After all that every plugin loads, and every requirement is met."""
    states = {record["name"]: record["status"] for record in listed(environment, tmp_path)}
    assert set(states.values()) == {"ok"}
    assert {"core", "llada", "remdm", "plugin-template", *(f"my-{kind}" for kind in KINDS)} == set(states)
    assert "No broken requirements" in environment.call("pip", "check", folder=tmp_path)


def listed(environment: Environment, folder: Path) -> list[dict]:
    return json.loads(environment.call("dllm", "plugins", "--json", folder=folder))
