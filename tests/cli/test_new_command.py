"""`dllm plugins new`: what it writes, and what it refuses before it writes anything."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

import dllm_core
from dllm_core import scaffold
from dllm_core.cli import main
from dllm_core.errors import OptionError
from dllm_core.plugins import PluginHost, PluginRecord, load_plugins
from dllm_core.scaffold import KINDS, core_bounds, placeholders, plugin_name, render, write_package

ROOT = Path(__file__).parents[2]
EVERYWHERE = {
    ".github/workflows/test.yml",
    ".gitignore",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "src/dllm_acme/__init__.py",
    "src/dllm_acme/conformance.py",
    "src/dllm_acme/plugin.py",
    "src/dllm_acme/py.typed",
    "tests/test_conformance.py",
}
OWN = {
    "sampler": {"src/dllm_acme/rule.py", "src/dllm_acme/sampler.py", "tests/test_rule.py"},
    "objective": {"src/dllm_acme/objective.py", "tests/test_times.py"},
    "adapter": {"src/dllm_acme/adapter.py", "src/dllm_acme/model.py"},
    "task": {f"src/dllm_acme/tasks/{name}" for name in ("acme.yaml", "data.py", "test.jsonl", "train.jsonl")},
}


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed beside this checkout must not decide which names are free."""
    monkeypatch.setattr("dllm_core.cli.new.installed_host", lambda: load_plugins(entry_points=[]))


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_package_is_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "acme", "--kind", kind]) == 0
    files = contents(tmp_path / "dllm-acme")
    assert set(files) == EVERYWHERE | OWN[kind]
    assert not [name for name, text in files.items() if scaffold.PLACEHOLDER.search(name + text)]
    printed = capsys.readouterr().out
    assert all(f"  {name}\n" in printed for name in files)
    commands = ["cd dllm-acme", 'pip install -e ".[test]"', "pytest", "dllm plugins check acme"]
    assert [line.strip() for line in printed.partition("Next:\n")[2].splitlines()][:4] == commands


@pytest.mark.parametrize("kind", KINDS)
def test_names_agree_throughout(kind: str, tmp_path: Path) -> None:
    write_package("two-words", kind, tmp_path / "made" / "anew")
    folder = tmp_path / "made/anew/dllm-two-words"
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "dllm-two-words"
    assert project["entry-points"]["dllm"] == {"two-words": "dllm_two_words.plugin"}
    (on_core,) = (
        requirement for requirement in map(Requirement, project["dependencies"]) if requirement.name == "dllm-core"
    )
    assert dllm_core.__version__ in on_core.specifier
    assert any(clause.operator == "<" for clause in on_core.specifier)
    files = contents(folder)
    assert "dllm plugins check two-words" in files["README.md"]
    assert "dllm plugins check two-words" in files[".github/workflows/test.yml"]
    assert "${{ matrix.python }}" in files[".github/workflows/test.yml"]
    assert 'name="two-words"' in files["src/dllm_two_words/plugin.py"]
    if kind != "task":
        assert "class TwoWords" in "".join(files.values())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_clean(kind: str, tmp_path: Path) -> None:
    """Names from short to long, since they push lines to the limit and words out of their order."""
    for name in ("a", "zeta-2", "a-rather-long-name-of-a-plugin"):
        write_package(name, kind, tmp_path)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", tmp_path], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
    for path in tmp_path.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), path, "exec")


def test_dllm_in_front_of_the_name_is_the_same_plugin() -> None:
    assert plugin_name("dllm-acme") == plugin_name("acme") == "acme"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Acme"], "'Acme' cannot name a plugin; use lower-case letters"),
        (["a_b"], "'a_b' cannot name a plugin"),
        (["../up"], "'../up' cannot name a plugin"),
        (["2fast"], "beginning with a letter"),
        (["dllm-"], "'dllm-' cannot name a plugin"),
        (["a--b"], "'a--b' cannot name a plugin"),
        (["core"], "'core' is the framework's own plugin name; choose another"),
        (["dllm-core"], "'core' is the framework's own"),
        (["acme", "--kind", "samplr"], "kind must be one of sampler, objective, adapter, task; got 'samplr'. Did you"),
    ],
)
def test_refusals(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    kind = [] if "--kind" in arguments else ["--kind", "sampler"]
    assert main(["plugins", "new", *arguments, *kind]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_the_kind_has_to_be_said(capsys: pytest.CaptureFixture) -> None:
    assert main(["plugins", "new", "acme"]) == 2
    assert "--kind" in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["plugins", "new", "acme", "--output", str(tmp_path), "--kind"]
    (tmp_path / "dllm-acme").mkdir()  # an empty folder is no loss
    assert main([*command, "sampler"]) == 0
    before = contents(tmp_path)
    assert main([*command, "objective"]) == 2
    assert "is there already and nothing is overwritten" in capsys.readouterr().err
    assert contents(tmp_path) == before
    (tmp_path / "dllm-file").write_text("")
    with pytest.raises(OptionError, match="nothing is overwritten"):
        write_package("file", "sampler", tmp_path)


def test_a_name_that_is_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Two plugins of one name are both left out, so nobody should be led there."""
    host = PluginHost()
    host.records.append(PluginRecord(name="acme", distribution="dllm-acme", version="0.3", target="dllm_acme.plugin"))
    monkeypatch.setattr("dllm_core.cli.new.installed_host", lambda: host)
    assert main(["plugins", "new", "acme", "--kind", "sampler", "--output", str(tmp_path)]) == 2
    assert "a plugin 'acme' is installed (dllm-acme 0.3)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bounds_reach_to_the_next_version_that_may_break() -> None:
    assert core_bounds("0.3.1") == ">=0.3,<0.4"
    assert core_bounds("1.2.0") == ">=1.2,<2"


def test_the_template_in_the_examples_is_what_the_command_writes() -> None:
    folder = ROOT / "examples/dllm-plugin-template"
    wanted = dict(render("sampler", placeholders("plugin-template", "sampler")))
    assert [str(path) for path in wanted if not (folder / path).is_file()] == []
    changed = [str(path) for path, text in wanted.items() if (folder / path).read_text(encoding="utf-8") != text]
    again = "git rm -r it, then: dllm plugins new plugin-template --kind sampler --output examples"
    assert changed == [], again


def test_help_names_the_kinds() -> None:
    from dllm_core.cli.new import command

    text = command.get_help(click.Context(command))
    assert all(kind in text for kind in KINDS)
