"""`dllm plugins check` in a process of its own, on a plugin of which one part is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from dllm_core.cli.check import conclusion, counts, summary
from dllm_core.conformance.runner import Doc, Group, Outcome
from dllm_core.conformance.suite import Suite

PLUGIN = """\
from dllm_core import CachePolicySpec, CommitRuleSpec, ModelAdapterSpec, hookimpl

@hookimpl
def dllm_samplers():
    yield CommitRuleSpec(name="lost", summary="-", target="dllm_acme.rule:Lost", source="original")
    yield CachePolicySpec(name="plain", summary="No cache", target="dllm_acme.cache:Plain", source="original")

@hookimpl
def dllm_model_adapters():
    yield ModelAdapterSpec(
        name="acme", summary="-", target="dllm_core.models:ModelAdapter", source="original", model_types=("acme",)
    )
"""
CACHE = """\
from dataclasses import dataclass
from dllm_core.samplers import NoCache

@dataclass(frozen=True, kw_only=True)
class Plain(NoCache):
    pass
"""
CONFORMANCE = """\
from dllm_core.conformance import CachePolicyTests

class TestPlain(CachePolicyTests):
    component = "acme/plain"
    exact = True
    expected_failures = {"test_counts_are_true": "it counts well"}

    def test_of_its_own(self):
        print("looking")
"""


def dllm(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line with the distributions in `folder` beside the installed ones."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "dllm_core", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "80"},
    )


@pytest.fixture
def acme(distributions, tmp_path: Path) -> Path:
    """A package with a good cache policy, a commit rule that is not there and a model adapter."""
    package = tmp_path / "dllm_acme"
    package.mkdir()
    for name, text in {"__init__": "", "plugin": PLUGIN, "cache": CACHE, "conformance": CONFORMANCE}.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    distributions("acme", None, target="dllm_acme.plugin")
    return tmp_path


def test_the_report_in_words(acme: Path) -> None:
    done = dllm("plugins", "check", "acme", folder=acme)
    assert done.returncode == 1
    assert done.stderr == "looking\n"
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("acme  dllm-acme 1.0, checked by dllm-core ")
    text = re.sub(r"\n +", " ", done.stdout)
    for said in (
        "adapter acme/acme  not checked it needs a test class with tiny_config(), a small configuration of the family",
        "commit rule acme/lost  1 error",
        "cache policy acme/plain  12 passed, 1 failed, 1 skipped",
        "skipped, refresh_options is not declared: refreshing every step is no cache",
        "plugin acme: targets resolve found   commit rule lost: cannot import 'dllm_acme.rule:Lost': No module named",
        "mend    correct the import string; add data files to `[tool.setuptools.package-data]`.",
        "test_counts_are_true passes, so it is no longer a known failure (it counts well); take it out",
    ):
        assert said in text
    assert re.fullmatch(r"\d+ passed, 3 failed, 1 error, \d+ skipped, 1 not checked in \d+\.\d s", lines[-1])


def test_the_report_as_data(acme: Path) -> None:
    done = dllm("plugins", "check", "acme", "--json", folder=acme)
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert list(report) == ["plugin", "distribution", "version", "core", "ok", "counts", "components"]
    assert (report["plugin"], report["ok"]) == ("acme", False)
    assert {state: report["counts"][state] for state in ("failed", "error")} == {"failed": 3, "error": 1}
    parts = {part["id"]: part for part in report["components"]}
    assert list(parts) == ["acme", "acme/acme", "acme/lost", "acme/plain"]
    assert [part["declared"] for part in parts.values()] == [False, False, False, True]
    assert list(parts["acme/plain"]) == ["kind", "id", "declared", "not_checked", "checks"]
    own = next(check for check in parts["acme/plain"]["checks"] if check["name"] == "test_of_its_own")
    assert own | {"seconds": 0} == {
        "name": "test_of_its_own",
        "state": "passed",
        "seconds": 0,
        "message": None,
        "notes": [],
        "guards": "",
        "why": "",
        "mend": "",
        "traceback": None,
    }
    (lost,) = parts["acme/lost"]["checks"]
    assert lost["message"].startswith("commit rule 'acme/lost' of plugin 'acme' cannot be loaded: ")


def test_a_plugin_that_does_not_load_is_told_once(distributions, tmp_path: Path) -> None:
    distributions("thirsty", "import einops_of_tomorrow")
    done = dllm("plugins", "check", "thirsty", "--json", folder=tmp_path)
    (part,) = json.loads(done.stdout)["components"]
    failed = [check for check in part["checks"] if check["state"] != "skipped"]
    assert done.returncode == 1
    assert {check["message"] for check in part["checks"] if check["state"] == "skipped"} >= {"the plugin does not load"}
    assert "test_plugin_loads" in {check["name"] for check in failed if check["state"] == "failed"}
    assert not any(check["state"] == "error" for check in failed)


def test_a_plugin_that_is_not_there(tmp_path: Path) -> None:
    done = dllm("plugins", "check", "cor", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: no plugin 'cor' is installed. Did you mean 'core'? Installed: core, ")


def outcome(check: str, state: str, message: str | None = None, traceback: str | None = None) -> Outcome:
    doc = Doc("It holds.", "It was ``seen`` to fail.", "Do that.")
    return Outcome(check=check, state=state, seconds=0.25, message=message, doc=doc, traceback=traceback)


OUTCOMES = [
    outcome("test_a_b", "passed"),
    outcome("test_c", "skipped", "x is not declared"),
    outcome("test_d", "skipped", "x is not declared"),
    outcome("test_e", "failed", "got 1"),
    outcome("test_f", "error", "TypeError: f", "Traceback\n  TypeError: f\n"),
]


def test_the_words() -> None:
    group = Group("sampler", "acme/calm", Suite, declared=False)
    assert [click.unstyle(line) for line in summary(group, OUTCOMES, 60)] == [
        "sampler acme/calm  1 passed, 1 failed, 1 error, 2 skipped, 1.2 s",
        "  skipped, x is not declared: c, d",
        "  failed  e",
        "  error  f",
        "  checked with default capabilities; declare others in the",
        "  package's module 'conformance'",
    ]
    assert click.unstyle("\n".join(conclusion([(group, OUTCOMES)], 60))) == (
        """
sampler acme/calm: e
  found   got 1
  guards  It holds.
  why     It was `seen` to fail.
  mend    Do that.

sampler acme/calm: f
  found   TypeError: f
  guards  It holds.
  why     It was `seen` to fail.
  mend    Do that.
  Traceback
    TypeError: f

1 passed, 1 failed, 1 error, 2 skipped in 1.2 s"""
    )


def test_states_that_did_not_occur_are_not_counted() -> None:
    assert click.unstyle(counts(OUTCOMES[:1])) == "1 passed"
