"""Section lora of a recipe: from a whole checkpoint to an adapter that loads, resumes, averages and merges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import dllm_core as dllm
from dllm_core.errors import ModelLoadError, OptionError
from dllm_core.models.lora import LoraSection, read_record
from dllm_core.models.merging import merge_checkpoint
from dllm_core.plugins import load_plugins, use_plugin_host
from dllm_core.training.checkpoints import newest_checkpoint
from dllm_core.training.recipes import Recipe, load_recipe, parse_recipe
from dllm_core.training.run import train

SMALL = LoraSection(r=4, alpha=8, targets=("q_proj", "v_proj", "up_proj"))


@pytest.fixture(scope="module")
def entry_point(make_letters_plugin, tmp_path_factory) -> Iterator[EntryPoint]:
    folder = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield make_letters_plugin(folder, "acme")


@pytest.fixture(autouse=True)
def _installed(entry_point):
    with use_plugin_host(load_plugins(entry_points=[entry_point])):
        yield


@pytest.fixture(scope="module")
def base(entry_point, tmp_path_factory) -> Path:
    """A model trained for a few steps."""
    with use_plugin_host(load_plugins(entry_points=[entry_point])):
        return train(load_recipe("letters"), tmp_path_factory.mktemp("base") / "base")


def lora_recipe(base: Path, *overrides: str, **model: object) -> Recipe:
    """The recipe ``letters`` on a checkpoint, with an adapter."""
    recipe = load_recipe("letters", ["training.eval_strategy=no", *overrides])
    section = replace(recipe.model, checkpoint=str(base), adapter=None, config={}, attn_implementation=None, **model)
    return replace(recipe, model=section, lora=SMALL, tokenizer=replace(recipe.tokenizer, builder=None))


def scores(denoiser) -> torch.Tensor:
    ids = torch.tensor([[3, 4, 1, 6, 1, 2], [1, 8, 9, 1, 3, 2]])
    with torch.no_grad():
        return denoiser.logits(ids, at=ids == 1)


def test_an_adapter_is_trained_saved_loaded_and_merged(base, tmp_path):
    out = train(lora_recipe(base), tmp_path / "out")
    assert {file.name for file in out.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "dllm_lora.json",
    }
    assert not (out / "model.safetensors").exists()
    assert not (out / "config.json").exists()
    assert not (out / "README.md").exists()
    assert read_record(out).base == str(base)
    weights = load_file(out / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in weights} == set(SMALL.targets)
    assert any(value.any() for name, value in weights.items() if "lora_B" in name)
    adapted = dllm.load(base, lora=out, device="cpu")
    assert not torch.equal(scores(adapted), scores(dllm.load(base, device="cpu")))
    merge_checkpoint(base, out, tmp_path / "merged")
    torch.testing.assert_close(
        scores(dllm.load(tmp_path / "merged", device="cpu")), scores(adapted), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(ModelLoadError, match="is a LoRA adapter, not a whole model"):
        train(lora_recipe(out), tmp_path / "on-an-adapter")


def test_a_resumed_adapter_ends_in_the_same_bits(base, tmp_path):
    constant = "training.lr_scheduler_type=constant"
    whole = train(lora_recipe(base, constant), tmp_path / "whole")
    part = train(lora_recipe(base, constant, "training.max_steps=4"), tmp_path / "part")
    assert read_record(newest_checkpoint(part / "checkpoints")) == read_record(whole)
    train(lora_recipe(base, constant), part, resume=True)
    got, want = (load_file(folder / "adapter_model.safetensors") for folder in (part, whole))
    assert all(torch.equal(got[name], want[name]) for name in want)
    other = replace(lora_recipe(base, constant, "training.max_steps=8"), lora=replace(SMALL, r=2))
    with pytest.raises(OptionError, match=r"lora\.r"):
        train(other, part, resume=True)


def test_with_checkpointed_activations_and_an_average(base, tmp_path):
    plain = train(lora_recipe(base), tmp_path / "plain")
    saving = train(lora_recipe(base, "training.activation_checkpointing=true"), tmp_path / "saving")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (plain, saving))
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-6, rtol=1e-5)
    averaged = train(lora_recipe(base, "training.ema_decay=0.5"), tmp_path / "averaged")
    third = load_file(averaged / "adapter_model.safetensors")
    assert third.keys() == first.keys()
    assert any(not torch.equal(third[name], first[name]) for name in first)


def test_compiled_below_the_head(base, tmp_path):
    """peft's wrapper has the head inside: what is compiled is the backbone that it wraps."""
    from dllm_core.training.trainer import compile_backbone

    denoiser = dllm.load(base, lora=train(lora_recipe(base), tmp_path / "out"), device="cpu")
    compile_backbone(denoiser.bare_model)
    inner = denoiser.model.get_base_model()
    assert inner.base_model._compiled_call_impl is not None
    assert inner._compiled_call_impl is None
    assert denoiser.model.base_model._compiled_call_impl is None


def test_four_bits(base, tmp_path):
    """The layers here are smaller than a block of bitsandbytes, which pads."""
    pytest.importorskip("bitsandbytes")
    out = train(lora_recipe(base, load_in_4bit=True), tmp_path / "out")
    quantised = dllm.load(base, lora=out, load_in_4bit=True, device="cpu")
    assert any(type(module).__name__ == "Linear4bit" for module in quantised.model.modules())
    merge_checkpoint(base, out, tmp_path / "merged")
    whole = dllm.load(base, lora=out, device="cpu")
    torch.testing.assert_close(
        scores(dllm.load(tmp_path / "merged", device="cpu")), scores(whole), atol=1e-5, rtol=1e-5
    )


DATA = {"data": {"train_file": "x.jsonl"}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"adapter": "acme"}, "lora": {}}, "section lora needs model.checkpoint"),
        ({"model": {"checkpoint": "x", "load_in_4bit": True}}, "4-bit weights cannot be trained; add section lora"),
        ({"model": {"adapter": "acme", "load_in_4bit": True}}, "load_in_4bit is for a checkpoint"),
        ({"model": {"checkpoint": "x"}, "lora": {"rank": 3}}, "section lora: unknown option 'rank'"),
        ({"model": {"checkpoint": "x"}, "lora": {"targets": "q_proj"}}, "must be a list of layer names"),
        ({"model": {"checkpoint": "x"}, "lora": 3}, "lora must be a mapping"),
    ],
)
def test_sections_that_do_not_go_together(sections, message):
    with pytest.raises(OptionError, match=message):
        parse_recipe(DATA | sections)


def test_the_defaults_are_the_papers():
    recipe = parse_recipe(DATA | {"model": {"checkpoint": "x"}, "lora": {}})
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.targets) == (128, 256, None)
    again = parse_recipe(yaml.safe_load(recipe.as_yaml()))
    assert again == recipe
    assert parse_recipe(DATA | {"model": {"checkpoint": "x"}, "lora": None}).lora is None


def test_the_record_is_plain_json(base, tmp_path):
    out = train(lora_recipe(base, "training.max_steps=1"), tmp_path / "out")
    record = json.loads((out / "dllm_lora.json").read_text())
    assert record["model_type"] == "llama"
    assert all(isinstance(value, float) for value in record["weights"].values())
