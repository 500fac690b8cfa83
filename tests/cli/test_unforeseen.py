"""What people get wrong beside the options of samplers: each error says what is allowed and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dllm_core import registry
from dllm_core.cli import main
from dllm_core.cli.blanks import span_of, stretches

MASK = 0


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (["recipes", "shw"], 2, "No such command 'shw'. Did you mean 'show'? Commands: list, show"),
        (["plugins", "nothing"], 2, "Commands: check, list, new, show"),
        (["data", "nothing"], 2, "Commands: prepare, show"),
        (["train"], 2, "Missing option '--recipe'. Name of an installed recipe (see dllm recipes), or a .yaml file."),
        (["train", "--recipe", "llada-tiny"], 2, "Missing option '--output'. Folder for the trained model"),
        (["train", "--recipe", "lada-tiny", "--output", "o"], 2, "Did you mean 'llada-tiny'? 'dllm recipes' lists"),
        (["convert", "folder", "out"], 2, "Missing option '--to'. "),
        (["run", "a", "--trace", "x", "--output", "./x"], 2, "--output and --trace are both x; give two files"),
        (["run", "--prompts-file", "x", "--output", "x"], 2, "--output and --prompts-file are both x; give two files"),
        (["visualize", "folder"], 2, "no trainer_state.json"),
        (["run", "a", "--model", "damaged"], 1, "its weights are damaged, download the checkpoint again"),
        (["run", "a", "--model", "cut"], 1, "its weights are damaged, download the checkpoint again"),
        (["run", "a", "--model", "empty"], 1, "It holds no weights; give a folder with a .safetensors file"),
    ],
)
def test_an_error_says_what_to_do(line, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    bundled = registry.find_bundled("llada-tiny")
    for name in {"damaged", "cut", "empty"} & set(line):
        shutil.copytree(bundled, name)
    for name in Path("damaged").glob("*.safetensors"):
        name.write_bytes(b"no weights" * 100)
    for name in Path("cut").glob("*.safetensors"):
        name.write_bytes(name.read_bytes()[:5000])
    for name in Path("empty").glob("*.safetensors"):
        name.unlink()
    assert main(line) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_a_dry_run_of_a_training_is_json_where_that_is_asked_for(capsys):
    line = ["train", "--recipe", "llada-tiny", "--dry-run", "--json", "max_steps=7"]
    assert main(line) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["recipe"]["training"]["max_steps"] == 7
    assert plan["start"] == ""
    assert main([*line, "--launch", "ddp", "--processes", "2"]) == 0
    assert "--nproc" in json.loads(capsys.readouterr().out)["start"]


@pytest.mark.parametrize(
    ("given", "filled", "parts"),
    [
        ([5, 0, 0, 6], [5, 1, 2, 6], [[1, 2]]),
        ([5, 0, 0, 6], [5, 1, 6], [[1]]),
        ([5, 0, 6], [5, 1, 6, 6, 6], [[1, 6, 6]]),  # the last of the given stands at the end
        ([0, 6, 0], [1, 2, 6, 3, 6], [[1, 2], [3, 6]]),
        ([0, 0], [], [[]]),
        ([0, 5, 0, 6, 0], [5, 6, 7, 8], [[], [], [7, 8]]),
        ([5, 0, 6, 7, 0], [5, 6, 1, 6, 7], [[6, 1], []]),
    ],
)
def test_blanks_are_found_again_whatever_their_length(given, filled, parts):
    found = stretches(given, filled, MASK)
    assert [filled[one.filled_start : one.filled_stop] for one in found] == parts


def test_blanks_that_touch_share_what_filled_them():
    found = stretches([5, 0, 0, 0, 6], [5, 1, 2, 3, 4, 6], MASK)
    assert [span_of(found, 1, 2), span_of(found, 2, 4)] == [(1, 2), (2, 5)]
    found = stretches([5, 0, 0, 0, 6], [5, 1, 6], MASK)
    assert [span_of(found, 1, 3), span_of(found, 3, 4)] == [(1, 2), (2, 2)]


def test_a_model_that_edits_fills_blanks_with_any_number_of_tokens(capsys):
    text = "def total(price, count):\r\n    return [MASK:9]\r\n\r\ndef ad(a, b):\n\treturn [MASK:4]"
    assert main(["run", "--model", "editflow-tiny", "--infill", text, "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    first, second, third = text.replace("[MASK:4]", "[MASK:9]").split("[MASK:9]")
    assert result["text"].startswith(first)
    assert second in result["text"]
    assert result["text"].endswith(third)
    assert result["completion_tokens"] == len(result["text"]) - len(first + second + third)  # a token a character
