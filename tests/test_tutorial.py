"""docs/tutorial-first-plugin.md is carried out as it stands: its files, its commands, what it says they print."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from dllm_core.scaffold import KINDS

TEXT = (Path(__file__).parents[1] / "docs/tutorial-first-plugin.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+/\S+|\S+\.\w+)\n")
PROGRAMS = {"dllm": ["-m", "dllm_core"], "pytest": ["-m", "pytest", "-q", "--import-mode=importlib", "tests"]}


@dataclass
class Reader:
    """Someone who follows the tutorial in an empty folder."""

    folder: Path
    printed: str = ""

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.removeprefix(f"# {name}\n") if path.suffix == ".md" else text, encoding="utf-8")

    def run(self, line: str) -> None:
        """Carry out a command; one that is said to fail has to."""
        command, _, remark = line.partition("#")
        words = shlex.split(command)
        if words[:2] == ["pip", "install"]:
            self.install()
            return
        arguments = [*PROGRAMS[words[0]], *words[1:]]
        self.python(arguments, fails=remark.strip() == "fails")

    def python(self, arguments: list[str], *, fails: bool = False) -> None:
        environment = os.environ | {"PYTHONPATH": f"{self.folder / 'src'}", "COLUMNS": "300"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        self.printed += done.stdout

    def install(self) -> None:
        """What ``pip install -e .`` leaves behind, without a network: the package's metadata, beside its modules."""
        project = tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        folder = self.folder / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        folder.mkdir()
        points = "".join(f"{name} = {value}\n" for name, value in project["entry-points"]["dllm"].items())
        (folder / "entry_points.txt").write_text(f"[dllm]\n{points}", encoding="utf-8")
        requires = "".join(f"Requires-Dist: {pip_form(text)}\n" for text in project["dependencies"])
        readme = (self.folder / project["readme"]).read_text(encoding="utf-8")
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n{requires}\n{readme}",
            encoding="utf-8",
        )


def pip_form(requirement: str) -> str:
    """A requirement as build tools write it, its bounds in order."""
    name, bounds = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
    return name + ",".join(sorted(bounds.split(",")))


def missing(text: str, printed: str) -> list[str]:
    """Lines that are not in the output in this order; one that ends in ``...`` says how a line begins."""
    said = iter([line.strip() for line in printed.splitlines()])
    wanted = [line.strip() for line in text.splitlines() if line.strip() != "..."]
    return [line for line in wanted if not any(matches(each, line) for each in said)]


def matches(said: str, line: str) -> bool:
    return said.startswith(line.removesuffix("...")) if line.endswith("...") else said == line


@pytest.mark.slow
def test_the_tutorial_is_carried_out(tmp_path: Path) -> None:
    reader, commands = Reader(tmp_path), 0
    for kind, text in BLOCKS:
        if match := FILE.match(text):
            reader.write(match[1], text)
        elif kind == "bash":
            reader.printed = ""
            for line in text.splitlines():
                if not line.startswith("dllm plugins new"):
                    reader.run(line)
                    commands += 1
        elif kind == "text":
            assert missing(text, reader.printed) == [], reader.printed
        elif kind == "python":
            reader.printed = ""
            reader.python(["-c", text])
            assert reader.printed.strip() == re.findall(r"^print\(.*\)  # (.+)$", text, re.MULTILINE)[-1]
    assert commands >= 6


def test_the_kinds_named_are_those_there_are() -> None:
    (named,) = re.findall(r"writes the whole thing, for a ([^:]+):", TEXT)
    assert set(re.findall(r"`(\w+)`", named)) == set(KINDS)


def test_a_line_that_was_not_printed_is_missed() -> None:
    printed = "one  1.5 s\n  two\nthree\n"
    assert missing("one ...\n...\nthree\n", printed) == []
    assert missing("one\n", printed) == ["one"]
    assert missing("three\ntwo\n", printed) == ["two"]
