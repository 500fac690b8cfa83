"""Pairs of texts before and after, with instructions, from a file to a model that has learned the edit."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from dllm_editflow.collator import AlignWrapper
from dllm_editflow.tiny.functions import functions

import dllm_core as dllm
from dllm_core.cli import main
from dllm_core.data import load_dataset
from dllm_core.training.collator import DiffusionCollator

INSTRUCTION = "Put the result in brackets."


def bracketed(text: str) -> str:
    head, _, result = text.partition("return ")
    return f"{head}return ({result.rstrip()})\n"


def texts(*, held_out: bool, every: int) -> list[str]:
    """Functions of one split, of all kinds."""
    return [text for held, text in functions() if held == held_out][::every]


def pairs_in(folder: Path, chosen: list[str]) -> Path:
    rows = [{"before": text, "after": bracketed(text), "instruction": INSTRUCTION} for text in chosen]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_what_stands_in_front_is_kept_out_of_the_alignment(tmp_path):
    """Though the instruction holds the very text that is edited."""
    denoiser = dllm.load("editflow-tiny")
    file = pairs_in(tmp_path, texts(held_out=False, every=300))
    examples = list(islice(load_dataset(str(file), tokenizer=denoiser.tokenizer, max_length=224).train, 3))
    collator = AlignWrapper(
        DiffusionCollator(pad_token_id=denoiser.pad_token_id),
        denoiser.mask_token_id,
        denoiser.bos_token_id,
        denoiser.text_token_ids,
        source="draft",
    )
    batch = collator(examples)
    for row, example in enumerate(examples):
        front = example["input_ids"][: example["prompt_length"]]
        source, target = (batch[f"{side}_columns"][row] for side in ("source", "target"))
        assert source[source >= 0].tolist() == [*front, *example["source_ids"]]
        assert target[target >= 0].tolist() == example["input_ids"]
        editable = batch["editable_columns"][row].tolist()
        assert editable[: len(front)] == [False] * len(front)
        assert all(editable[len(front) : int((source > -2).sum())])
        assert int((source != target).sum()) == 2  # the brackets


@pytest.mark.slow
def test_an_instruction_is_learned_from_pairs(tmp_path, monkeypatch, capfdbinary):
    """By the shipped recipe; then by the command, in a file of Windows, on functions that were not in the pairs."""
    monkeypatch.chdir(tmp_path)
    file = pairs_in(tmp_path, texts(held_out=False, every=1))
    sizes = ["training.max_steps=150", "training.use_cpu=true", "training.save_steps=150"]
    assert main(["train", "--recipe", "editflow-pairs", "--output", "own", f"data.dataset={file.name}", *sizes]) == 0
    right = 0
    for text in texts(held_out=True, every=20):
        Path("f.py").write_bytes(f"import os\r\n\r\n{text}".replace("\n", "\r\n").replace("\r\r", "\r").encode())
        capfdbinary.readouterr()
        told = ["--lines", "3:4", "--model", "own", "--instruction", INSTRUCTION, "--output", "file", "--device", "cpu"]
        assert main(["edit", "f.py", *told]) == 0
        right += capfdbinary.readouterr()[0].decode() == f"import os\n\n{bracketed(text)}".replace("\n", "\r\n")
    assert right >= 0.9 * len(texts(held_out=True, every=20))
