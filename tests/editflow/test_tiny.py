"""The bundled checkpoint and what it was trained on."""

from __future__ import annotations

import itertools
import json
import re
from itertools import islice
from pathlib import Path

import pytest
from dllm_editflow.alignment import distance
from dllm_editflow.tiny.evaluate import FILES, KINDS, held_out, main, score
from dllm_editflow.tiny.examples import examples
from dllm_editflow.tiny.functions import BODIES, MOST_ERRORS, PARAMETERS, exercises, functions

import dllm_core as dllm

PLUGIN = Path(__file__).parents[2] / "plugins/dllm-editflow"
LARGEST = 8_000_000  # bytes


def letters(text: str) -> list[int]:
    return [*map(ord, text)]


@pytest.mark.parametrize("words", [BODIES, PARAMETERS])
def test_words_with_one_wrong_letter_are_told_apart(words):
    assert min(distance(letters(a), letters(b)) for a, b in itertools.combinations(words, 2)) >= 3


def test_every_function_is_in_one_split():
    split = dict.fromkeys((text for _, text in functions()), 0)
    assert len(split) == len(list(functions()))
    held_out = {text for held, text in functions() if held}
    assert 0.08 < len(held_out) / len(split) < 0.14
    for name in ("train", "held_out"):
        drawn = {one.text for one in islice(exercises(name, 0), 300)}
        assert drawn <= held_out if name == "held_out" else not drawn & held_out


def test_each_error_is_one_edit_and_draws_repeat():
    first, again = (list(islice(exercises("held_out", 3), 200)) for _ in range(2))
    assert first == again != list(islice(exercises("held_out", 4), 200))
    for one in first:
        needed = distance(letters(one.draft), letters(one.text))
        assert (needed == 0) == (one.errors == 0)
        assert needed <= one.errors <= MOST_ERRORS
        assert one.draft.endswith("\n")


def test_functions_compute_what_their_names_say():
    """All texts are Python, and a few answers are checked."""
    space: dict[str, object] = {}
    for _, text in functions():
        exec(compile(text, "function", "exec"), space)
    answers = {"add": 10, "subtract": 4, "power": 343, "is_less": False, "biggest": 7, "remainder": 1}
    assert {name: space[name](7, 3) for name in answers} == answers
    assert space["last_of"]([1, 2]) == 2


def test_examples_bring_their_drafts():
    example = next(iter(examples(split="train", seed=0, count=1)))
    assert example["labels"][0] == -100
    assert example["input_ids"][0] == dllm.load("editflow-tiny").bos_token_id
    assert example["labels"][1:] == example["input_ids"][1:]
    assert example["source_ids"]


def test_the_checkpoint_is_small():
    folder = PLUGIN / "src/dllm_editflow/checkpoints/editflow-tiny"
    assert sum(file.stat().st_size for file in folder.iterdir()) < LARGEST


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_functions_are_mended(kind):
    """Above 90% exact, churn below 1.2, and clean text left alone, as the README says of 500 each."""
    found = score(dllm.sampler("editflow/mend", dllm.load("editflow-tiny")), kind, 50)
    assert found.exact >= (50 if kind == "no error" else 45)
    assert found.churn < 1.2
    assert found.needed or found.edits == 0


def test_files_hold_several_functions():
    for one in held_out(FILES, 20):
        assert one.text.count("def ") in (2, 3)
        assert one.text.count("\n\n") == one.text.count("def ") - 1


def test_the_table_is_printed(capsys):
    assert main(["--count", "4", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["kind"] for record in records] == list(KINDS)
    assert main(["--count", "0"]) == 2
    assert "count" in capsys.readouterr().err


def test_the_program_of_the_readme_mends(capsys):
    text = (PLUGIN / "README.md").read_text(encoding="utf-8")
    (program,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "start_edit" in code]
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("def add(size, price):\n    return size + price\n")
