"""`dllm edit` with the sampler of this plugin, and a model that has edit heads but was never trained to use them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from dllm_editflow.converting import convert

from dllm_core import registry
from dllm_core.cli import main

TEXT = "reverse abc\r\n12+30=\r\ntwice ab é".encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a text and a converted model."""
    folder = tmp_path_factory.mktemp("edit")
    made = convert(str(registry.find_bundled("llada-tiny")), dtype=torch.float32)
    made.model.save_pretrained(folder / "model")
    made.tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def edit(folder, monkeypatch, capfdbinary):
    """Run the command on the text; its output."""
    monkeypatch.chdir(folder)
    Path("f.txt").write_bytes(TEXT)

    def call(*arguments: str) -> bytes:
        assert main(["edit", "f.txt", *arguments]) == 0
        return capfdbinary.readouterr()[0]

    return call


MODEL = ("--model", "model", "--lines", "2", "-o", "threshold=0.001", "--max-edits", "4")


def test_edits_of_one_line_there_and_back(edit):
    record = json.loads(edit(*MODEL, "--output", "json", "--log", "log", "--write"))
    after = Path("f.txt").read_bytes()
    assert after == record["text"].encode() != TEXT
    assert after.startswith(b"reverse abc\r\n")
    assert after.endswith("\r\ntwice ab é".encode())
    assert 0 < record["edits"] == len(record["log"]) <= 4
    assert record["stats"]["forward_passes"] >= 1
    edit("--undo", "log", "--write")
    assert Path("f.txt").read_bytes() == TEXT
    edit("--replay", "log", "--write")
    assert Path("f.txt").read_bytes() == after


def test_no_edits_are_an_empty_patch(edit):
    assert edit("--model", "model", "--max-edits", "0") == b""


def test_the_map_knows_what_may_change(edit):
    record = json.loads(edit("--model", "model", "--suspicion", "--lines", "2", "--output", "json"))
    assert {token["line"] for token in record["tokens"] if token["change"] > 0} == {2}


RIGHT = ("def add(size, price):", "    return size + price")
SPOILT = ("dpf add(size, price:", "    freturn size + price")


def other_lines(first: int, last: int) -> list[str]:
    """Code that the model has never seen."""
    return [
        f"        self.table_{number} = [key for key in self._load({number}, 'part') if key]"
        if number % 7
        else f"\n    def read_{number}(self) -> None:  # 第{number}部"
        for number in range(first, last)
    ]


@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["lines", "pairs"])
def test_one_block_of_500_lines_is_mended_and_git_takes_the_patch(ends, tmp_path, monkeypatch, capfdbinary):
    """From a folder below the repository's, in a file whose name has blanks; all else stays to the byte."""
    around = ["class Reader:", *other_lines(1, 215), "", ""], ["", "", *other_lines(215, 430), "last = 1"]
    text, right = (ends.join([*around[0], *block, *around[1]]).encode() for block in (SPOILT, RIGHT))
    folder = tmp_path / "sub folder"
    folder.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    file = folder / "own tool ä.py"
    file.write_bytes(text.replace(b"\r\n", b"\n").replace(b"\n", ends.encode()))
    lines = file.read_text().split("\n")
    assert len(lines) > 490
    first = lines.index(SPOILT[0]) + 1
    monkeypatch.chdir(folder)
    assert main(["edit", file.name, "--lines", f"{first}:{first + 1}", "--device", "cpu"]) == 0
    patch, said = capfdbinary.readouterr()
    assert f"of {len(lines)}, and edits only there" in said.decode()
    command = ["git", "-c", "core.autocrlf=false", "apply", "--whitespace=nowarn", "-"]
    subprocess.run(command, input=patch, cwd=folder, check=True)
    assert file.read_bytes() == right.replace(b"\r\n", b"\n").replace(b"\n", ends.encode())
