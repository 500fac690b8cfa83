"""Piped output of `dllm run --json` is JSON and nothing else, whatever else is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from dllm_core.cli import main
from dllm_core.cli.run import command

# Each option of `dllm run` with a value; those that are one object a prompt come with one prompt.
OPTIONS: dict[str, list[str]] = {
    "--model": ["llada-tiny"],
    "--plugin": ["llada"],
    "--sampler": ["bd3lm"],
    "-o": ["commit=quota"],
    "--max-new-tokens": ["8"],
    "--steps": ["4"],
    "--block-size": ["4"],
    "--temperature": ["1.0"],
    "--seed": ["3"],
    "--chat": [],
    "--raw": [],
    "--system": ["Answer."],
    "--device": ["cpu"],
    "--dtype": ["bfloat16"],
    "--batch-size": ["2"],
    "--live": [],
    "--no-live": [],
    "--trace": ["t.trace"],
}
ALONE = {"--prompts-file", "--infill", "--output", "--json", "--help"}  # other tests of this file


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_option_is_tried() -> None:
    with click.Context(command) as context:
        names = {name for each in command.get_params(context) for name in (*each.opts, *each.secondary_opts)}
    long = {name for name in names if name.startswith("--")} | {"-o"}
    assert long == set(OPTIONS) | ALONE


@pytest.mark.parametrize("option", OPTIONS)
def test_stdout_is_one_object(option: str, capfd) -> None:
    given = [] if option == "--max-new-tokens" else ["--max-new-tokens", "8"]
    code = main(["run", "12+30=", "--json", *given, option, *OPTIONS[option]])
    out, err = capfd.readouterr()
    if option == "--live":  # which is for people, and says so
        assert (code, out) == (2, "")
        assert "Error" in err
        return
    assert code == 0, err
    assert json.loads(out)["prompt"] == "12+30="
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "count"),
    [(["--infill", "12+[MASK:2]=57"], 1), (["--prompts-file", "p.jsonl"], 2), (["--steps", "2"], None)],
    ids=["infill", "file", "demo"],
)
def test_every_line_is_one_object(arguments: list[str], count: int | None, capfd) -> None:
    Path("p.jsonl").write_text('{"prompt": "reverse ab"}\n{"prompt": "12+30="}\n')
    assert main(["run", "--json", *arguments]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == (count or len(lines))
    assert all("text" in json.loads(line) for line in lines)


def test_with_a_file_stdout_is_empty(capfd) -> None:
    assert main(["run", "12+30=", "--json", "--max-new-tokens", "8", "--output", "r.jsonl"]) == 0
    assert capfd.readouterr().out == ""
    assert json.loads(Path("r.jsonl").read_text())["text"]


def test_a_pipe_into_another_program() -> None:
    ours = [sys.executable, "-m", "dllm_core", "run", "12+30=", "--json", "--steps", "4"]
    written = subprocess.run(ours, capture_output=True, check=True)
    read = subprocess.run([sys.executable, "-m", "json.tool"], input=written.stdout, capture_output=True, check=True)
    assert json.loads(read.stdout)["prompt"] == "12+30="
