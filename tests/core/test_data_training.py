"""Recipes that train on data sets: prepared or not, streamed, packed and wrapped; resumed to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dllm_core.errors import DataError, OptionError
from dllm_core.training.recipes import load_recipe, parse_recipe
from dllm_core.training.run import check_recipe, train

pytest.importorskip("datasets")


@pytest.fixture
def rows(tmp_path) -> Path:
    lines = [json.dumps({"prompt": f"{n} + {n} =", "response": str(2 * n)}) for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


def recipe(rows: Path, **data: object):
    return parse_recipe(
        {
            "model": {"checkpoint": "llada-tiny"},
            "data": {"dataset": f"{rows}[test:8]", "max_length": 48, **data},
            "training": {
                "max_steps": 4,
                "per_device_train_batch_size": 4,
                "save_steps": 2,
                "logging_steps": 2,
                "use_cpu": True,
            },
        }
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        {"packing": True, "collators": ["prepend_bos", {"name": "append_eos_block", "block_size": 8}]},
        {"streaming": True, "collators": [{"name": "random_truncate", "random_length_ratio": 0.5}]},
    ],
    ids=["packed", "streamed"],
)
def test_a_training_on_a_data_set_resumes_to_the_bit(rows, tmp_path, data):
    import shutil

    chosen = recipe(rows, **data)
    train(chosen, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole/checkpoints/checkpoint-2", tmp_path / "half/checkpoints/checkpoint-2")
    (tmp_path / "half/recipe.yaml").write_text(chosen.as_yaml())
    assert load_recipe(tmp_path / "half/recipe.yaml") == chosen
    train(chosen, tmp_path / "half", resume=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "half")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_evaluation_takes_rows_that_were_held_out(rows, tmp_path):
    chosen = recipe(rows, eval_count=5, learn_padding=True)
    chosen.training.update(eval_strategy="steps", eval_steps=4)
    train(chosen, tmp_path / "out")
    state = json.loads((tmp_path / "out/checkpoints/checkpoint-4/trainer_state.json").read_text())
    assert any("eval_nll" in entry for entry in state["log_history"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"format": "chat"}, "do not fit format chat"),
        ({"collators": ["nothing"]}, "data.collators must be one of"),
        ({"max_length": 5}, "no example came of 32 rows of train: 32 nothing to learn within max_length"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_the_first_step(rows, tmp_path, data, message):
    with pytest.raises((DataError, OptionError), match=message):
        train(recipe(rows, **data), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sections_that_do_not_fit_together_are_refused(rows):
    for data, message in (
        ({"train_file": "x"}, "either generator, train_file or dataset"),
        ({"packing": True, "learn_padding": True}, "packing pads its own way"),
        ({"truncation": "left"}, "truncation must be one of right, filter"),
        ({"dataset": "a[["}, "expected key:value"),
    ):
        with pytest.raises((OptionError, DataError), match=message.replace("[", r"\[")):
            check_recipe(recipe(rows, **data))
