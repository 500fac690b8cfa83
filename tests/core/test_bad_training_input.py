"""What cannot be trained is refused before the first step: one line that names the value and the next step."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dllm_core.errors import DllmError
from dllm_core.plugins import load_plugins, use_plugin_host
from dllm_core.training.checkpoints import whole_checkpoints
from dllm_core.training.recipes import load_recipe
from dllm_core.training.run import train

QUICK = ["data.eval_count=0", "training.eval_strategy=no", "training.max_steps=2", "training.save_steps=1"]
MORE_PARTS = """

def no_mask():
    tokenizer = build_tokenizer()
    tokenizer.mask_token = None
    return tokenizer

def nothing_to_learn(*, split, seed, count, longest=6):
    for example in examples(split=split, seed=seed, count=count):
        yield {**example, "labels": [-100] * len(example["input_ids"])}

def too_long(*, split, seed, count, longest=6):
    yield from ({"input_ids": [3] * 17} for _ in range(count))

def unequal(*, split, seed, count, longest=6):
    yield from ({"input_ids": [3] * 4, "labels": [3] * 3} for _ in range(count))
"""


@pytest.fixture(scope="module")
def package(make_letters_plugin, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("plugins")
    entry_point = make_letters_plugin(folder, "acme")
    name = entry_point.value.partition(".")[0]
    with (folder / name / "parts.py").open("a") as parts:
        parts.write(MORE_PARTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        for module in [module for module in sys.modules if module.startswith(name)]:
            patch.delitem(sys.modules, module)  # that other tests imported from another folder
        with use_plugin_host(load_plugins(entry_points=[entry_point])):
            yield name


@pytest.fixture(scope="module")
def trained(package, tmp_path_factory) -> Path:
    return train(load_recipe("letters", QUICK), tmp_path_factory.mktemp("run") / "out")


@pytest.fixture(scope="module")
def adapter(package, trained, tmp_path_factory) -> Path:
    return train(load_recipe("letters", lora_of(trained)), tmp_path_factory.mktemp("run") / "adapter")


def lora_of(base: Path, *more: str) -> list[str]:
    model = [f"model.checkpoint={base}", "model.adapter=null", "model.config={}", "tokenizer.builder=null"]
    return [*QUICK, *model, "lora.r=2", "lora.alpha=4", *more]


def refused(recipe_overrides: list[str], output: Path, *, resume: bool = False) -> str:
    """The one line that training ends with; no step was trained."""
    before = [file.name for file in whole_checkpoints(output / "checkpoints")]
    with pytest.raises(DllmError) as caught:
        train(load_recipe("letters", recipe_overrides), output, resume=resume)
    assert [file.name for file in whole_checkpoints(output / "checkpoints")] == before
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer.builder=PARTS:no_mask"], "no mask token is known"),
        (
            ["data.generator=PARTS:nothing_to_learn"],
            "has a token to learn: every label is -100; check",
        ),
        (["data.generator=PARTS:too_long"], "17 tokens long, the model reads at most 16; set data.max_length to 16"),
        (["data.generator=PARTS:unequal"], "has 4 input_ids and 3 labels; give one label per token"),
        (["objective={name: bd3lm, block_size: 5}"], "no multiple of block_size=5"),
        (["objective={name: bd3lm, block_size: 0}"], "block_size must be at least 1"),
        (["data.generator=PARTS:absent"], "cannot import"),
        (["model.config.max_position_embeddings=4"], "the model reads at most 4"),
        (["training.ema_decay=1.5"], "ema_decay must lie between 0 and 1, for example 0.9999; got 1.5"),
    ],
    ids=lambda value: value[0].partition("=")[2][:24] if isinstance(value, list) else "",
)
def test_refused_before_the_first_step(package, tmp_path, overrides, message):
    overrides = [override.replace("PARTS", f"{package}.parts") for override in overrides]
    assert message in refused([*QUICK, *overrides], tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("whole", ["lora.r=2", "lora.alpha=4"], "LoRA"),
        ("adapter", ["lora=null"], "LoRA"),
        ("adapter", ["lora.r=3"], "lora.r"),
        ("adapter", ["lora.alpha=5"], "lora.alpha"),
        ("whole", ["model.config.num_hidden_layers=1"], "architecture"),
    ],
)
def test_a_checkpoint_of_something_else_is_not_gone_on_with(trained, adapter, tmp_path, kind, change, message):
    """With no recipe beside it, so that the checkpoint itself must tell."""
    output, longer = tmp_path / "out", ["training.max_steps=4"]
    shutil.copytree((trained if kind == "whole" else adapter) / "checkpoints", output / "checkpoints")
    with_lora = kind == "adapter" or "lora.r=2" in change
    overrides = lora_of(trained, *longer) if with_lora else [*QUICK, *longer]
    assert message in refused([*overrides, *change], output, resume=True)


def test_an_adapter_goes_on(trained, adapter, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(adapter, output)
    train(load_recipe("letters", lora_of(trained, "training.max_steps=3")), output, resume=True)
    assert whole_checkpoints(output / "checkpoints")[-1].name == "checkpoint-3"
