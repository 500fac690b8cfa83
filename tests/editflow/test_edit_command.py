"""`dllm edit` with the sampler of this plugin, and a model that has edit heads but was never trained to use them."""

from __future__ import annotations

import json
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
