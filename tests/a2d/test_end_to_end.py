"""From a causal model to a trained diffusion model that is loaded, writes and is scored, by both objectives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dllm_a2d.sorting import GIVEN, examples

import dllm_core as dllm
from dllm_core.evaluation import loglikelihood
from dllm_core.models.converting import convert_checkpoint
from dllm_core.training.recipes import find_recipes, load_recipe, parse_recipe
from dllm_core.training.run import check_recipe, train

HELD_OUT = [
    ([token for token, label in zip(one["input_ids"], one["labels"], strict=True) if label == GIVEN],
     [label for label in one["labels"] if label != GIVEN])
    for one in examples(split="held_out", seed=1, count=4)
]  # fmt: skip


def likelihood(denoiser: dllm.Denoiser) -> float:
    """Log-likelihood of the held-out answers, the draws always the same."""
    return sum(loglikelihood(denoiser, prompt, answer, mc_num=8, seed=0) for prompt, answer in HELD_OUT)


@pytest.mark.parametrize(
    ("objective", "sampler", "shift", "source"),
    [
        ({"name": "mdlm", "weighting": "uniform"}, ("mdlm", {}), False, "qwen3"),
        ({"name": "bd3lm", "block_size": 4}, ("bd3lm", {"block_size": 4}), False, "qwen3"),
        ({"name": "mdlm", "weighting": "uniform"}, ("mdlm", {}), True, "gpt2"),
    ],
    ids=["mdlm", "bd3lm", "mdlm-shifted-gpt2"],
)
def test_convert_train_save_load_generate_and_score(objective, sampler, shift, source, causal, tmp_path):
    convert_checkpoint(causal(source, full=True)[0], tmp_path / "converted", to="a2d", logits_are_shifted=shift)
    recipe = {
        "model": {"checkpoint": str(tmp_path / "converted")},
        "data": {"generator": "dllm_a2d.sorting:examples", "learn_padding": True, "pad_to_multiple_of": 4},
        "objective": objective,
        "training": {
            "max_steps": 24,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.01,
            "use_cpu": True,
            "save_strategy": "no",
            "seed": 0,
        },
    }
    train(parse_recipe(recipe), tmp_path / "trained")
    before, after = (dllm.load(tmp_path / name, device="cpu") for name in ("converted", "trained"))
    assert after.logits_are_shifted is shift
    assert json.loads((tmp_path / "trained/config.json").read_text())["is_causal"] is False
    assert likelihood(after) > likelihood(before) + 1
    name, options = sampler
    prompts = [prompt for prompt, _ in HELD_OUT]
    out = dllm.sampler(name, after, max_new_tokens=8, steps=4, stop_at_eos=False, **options).sample(prompts)
    for row, prompt in enumerate(prompts):
        assert out.sequences[row, : len(prompt)].tolist() == prompt
        assert not (out.sequences[row, : len(prompt) + 8] == after.mask_token_id).any()
    assert all(isinstance(text, str) for text in out.texts)


@pytest.mark.parametrize("name", [name for name in find_recipes() if name.startswith("a2d/")])
def test_recipes_run_on_what_they_name(name, causal, tmp_path, monkeypatch):
    """A step of each, with a small model in the place of Qwen3-0.6B."""
    monkeypatch.chdir(tmp_path)
    convert_checkpoint(causal("qwen3")[0], "qwen3-0.6b-a2d", to="a2d")
    lines = (json.dumps(one) for one in examples(split="train", seed=0, count=8))
    Path("own.jsonl").write_text("\n".join(lines))
    changes = ["training.use_cpu=true", "training.bf16=false", "training.max_steps=1", "per_device_train_batch_size=2"]
    if load_recipe(name).data.dataset is not None:  # on the hub
        changes += ["data.dataset=own.jsonl", "data.eval_count=0", "training.eval_strategy=no"]
        changes += ["data.pad_to_multiple_of=32", "data.learn_padding=true"] if "bd3lm" in name else []
    recipe = load_recipe(name, changes)
    check_recipe(recipe)
    train(recipe, tmp_path / "trained")
    adapter = tmp_path / "trained" if recipe.lora is not None else None
    trained = dllm.load("qwen3-0.6b-a2d" if adapter else tmp_path / "trained", lora=adapter, device="cpu")
    assert trained.mask_token_id == 102


def test_the_recipes_are_here():
    names = {name for name in find_recipes() if name.startswith("a2d/")}
    kinds = ("", "-tiny", "-alpaca", "-alpaca-lora", "-shakespeare", "-openwebtext")
    assert names == {f"a2d/a2d-{objective}{kind}" for objective in ("mdlm", "bd3lm") for kind in kinds}


def test_sorting_is_sorted_and_held_out():
    splits = {split: list(examples(split=split, seed=0, count=200)) for split in ("train", "held_out")}
    prompts = {split: {tuple(one["input_ids"][:-8]) for one in found} for split, found in splits.items()}
    assert not prompts["train"] & prompts["held_out"]
    for one in splits["train"]:
        question, answer = one["input_ids"][:-9], one["input_ids"][-8:]
        assert answer == sorted(question) + [0] * (8 - len(question))  # ids of digits are in the order of digits
        assert one["labels"] == [GIVEN] * (len(question) + 1) + answer


def test_random_draws_of_the_user_are_left_alone(causal, tmp_path):
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    convert_checkpoint(Path(causal("gpt2", full=True)[0]), tmp_path / "out", to="a2d")
    assert torch.equal(torch.rand(3), want)
