"""The bundled llada-tiny: small enough, whole, as good as the README says, and trainable from its recipe."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from dllm_llada import plugin
from dllm_llada.tiny import evaluate
from dllm_llada.tiny.splits import split_of
from dllm_llada.tiny.sudoku import grids_of
from dllm_llada.tiny.tasks import SKILLS, pair_item
from dllm_llada.tiny.tokenizer import build_tokenizer
from safetensors import safe_open

import dllm_core as dllm
from dllm_core.cli.prompts import expand_blanks
from dllm_core.registry import resource_path
from dllm_core.training import load_recipe, train

ADAPTER = next(iter(plugin.dllm_model_adapters()))
(TINY,) = ADAPTER.bundled
FOLDER = resource_path(TINY.resource)
README = Path(__file__).parents[2] / "plugins" / "dllm-llada" / "README.md"

# The prompts of `dllm run` without a prompt, all of them held out, and what is right.
DEMO = {
    "solve .4.. ..1. .3.. 4..3": "1432\n3214\n2341\n4123",
    "345+799=": "1144",
    "sort 1618033": "0113368",
    "reverse matrix": "xirtam",
    "uppercase guitar": "GUITAR",
    "58+[MASK:2]=143": "58+85=143",
    "turtle|[MASK:6]": "turtle|eltrut",
}


@pytest.fixture(scope="module")
def denoiser() -> dllm.Denoiser:
    return dllm.load("llada-tiny")


def claimed() -> dict[str, list[float]]:
    """The README's table: skill -> percentages in the order of `evaluate.ORDERS`."""
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", README.read_text(encoding="utf-8"), re.M)
    return {skill: [float(value) for value in values] for skill, *values in rows}


def test_the_checkpoint_is_small_and_holds_every_file():
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert sum(files.values()) < 8e6


def test_the_weights_are_the_ones_that_the_readme_names():
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert digest in README.read_text(encoding="utf-8")


def test_the_weights_are_bfloat16():
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_the_config_is_that_of_the_recipe():
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    wanted = load_recipe("llada-tiny").model.config
    assert {name: config[name] for name in wanted} == wanted


def test_the_tokenizer_is_the_one_that_the_code_builds(denoiser):
    built, shipped = build_tokenizer(), denoiser.tokenizer
    assert shipped.get_vocab() == built.get_vocab()
    text = 'solve 1... <|eot_id|> \n\n "ö" <|start_header_id|>assistant<|end_header_id|>\n\n'
    assert shipped(text)["input_ids"] == built(text)["input_ids"]
    messages = [{"role": "system", "content": "a "}, {"role": "user", "content": "b"}]
    for prompt in (True, False):
        assert shipped.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt) == (
            built.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        )


def test_the_special_tokens_reach_the_denoiser(denoiser):
    tokenizer = build_tokenizer()
    assert denoiser.mask_token_id == tokenizer.mask_token_id
    assert denoiser.eos_token_id == denoiser.pad_token_id == tokenizer.eos_token_id
    assert denoiser.eot_token_ids == (tokenizer.convert_tokens_to_ids("<|eot_id|>"),)


def test_the_readme_claims_every_skill_above_97_percent_by_confidence():
    table = claimed()
    assert tuple(table) == evaluate.CLAIMED
    assert {"sudoku", "addition", "sorting", "reversal", "instructions", "equation"} <= table.keys() < SKILLS.keys()
    assert all(confidence > 97 for confidence, _, _ in table.values())


@pytest.mark.parametrize("skill", claimed())
def test_held_out_exercises_are_solved(denoiser, skill):
    chosen = evaluate.held_out_exercises(skill, 40, seed=1)
    sampler = dllm.sampler("mdlm", denoiser, max_new_tokens=evaluate.NEW_TOKENS, **evaluate.ORDERS["confidence"])
    assert evaluate.count_correct(sampler, chosen, batch_size=40) >= 36


@pytest.mark.parametrize("new_tokens", [24, 64, 128])
def test_the_length_of_the_canvas_does_not_matter(denoiser, new_tokens):
    """LLaDA is trained on padding with the end of text, so that an answer may be shorter than its canvas."""
    chosen = evaluate.held_out_exercises("reversal", 10, seed=2) + evaluate.held_out_exercises("addition", 10, seed=2)
    sampler = dllm.sampler("mdlm", denoiser, max_new_tokens=new_tokens)
    assert evaluate.count_correct(sampler, chosen, batch_size=20) >= 18


def test_any_order_beats_left_to_right_on_sudoku(denoiser):
    chosen = evaluate.held_out_exercises("sudoku", 60, seed=3)
    correct = {
        order: evaluate.count_correct(
            dllm.sampler("mdlm", denoiser, max_new_tokens=evaluate.NEW_TOKENS, **options), chosen, batch_size=60
        )
        for order, options in evaluate.ORDERS.items()
    }
    assert correct["confidence"] > correct["left to right"] > correct["one step"]


@pytest.mark.parametrize(("prompt", "answer"), DEMO.items())
def test_the_demo_prompts_are_answered_right(denoiser, prompt, answer):
    sampler = dllm.sampler("mdlm", denoiser)
    if "[MASK" in prompt:
        canvas = expand_blanks(prompt, denoiser.tokenizer.mask_token, "the demo")
        assert sampler.infill([canvas]).texts == [answer]
    else:
        assert sampler.sample([[{"role": "user", "content": prompt}]]).texts == [answer]


def test_every_demo_prompt_is_held_out_and_tested():
    assert tuple(DEMO) == TINY.demo_prompts
    assert "1432321423414123" in grids_of("held_out")
    items = (pair_item(345, 799), pair_item(58, 85), "multiset:0113368", "word:matrix", "word:guitar", "word:turtle")
    assert {split_of(item) for item in items} == {"held_out"}


def test_the_table_and_the_records_say_the_same(capsys):
    arguments = ["--skills", "mirror", "equation", "--count", "10"]
    evaluate.main(arguments)
    table = capsys.readouterr().out
    evaluate.main([*arguments, "--json"])
    records = json.loads(capsys.readouterr().out)
    assert [(one["skill"], one["order"]) for one in records] == [
        (skill, order) for skill in ("mirror", "equation") for order in evaluate.ORDERS
    ]
    for one in records:
        assert one["count"] == 10
        assert f"{100 * one['correct'] / 10:.1f}" in table
    assert table.splitlines()[0] == "| skill | confidence | left to right | one step |"


def test_exercises_of_the_table_are_different_and_reproducible():
    first = evaluate.held_out_exercises("progression", 300, seed=0)
    assert len(set(first)) == 300
    assert first == evaluate.held_out_exercises("progression", 300, seed=0)
    assert first != evaluate.held_out_exercises("progression", 300, seed=1)


@pytest.mark.slow
def test_the_readme_table_can_be_measured_again(denoiser):
    table = claimed()
    for score in evaluate.evaluate(denoiser, skills=tuple(table), count=100, seed=7):
        column = tuple(evaluate.ORDERS).index(score.order)
        # two binomial samples, of 100 here and 500 there: five standard deviations of the smaller one at worst
        assert abs(100 * score.accuracy - table[score.skill][column]) <= 25
        if score.order == "confidence":
            assert score.accuracy >= 0.93


@pytest.mark.slow
def test_a_short_run_of_the_recipe_learns(tmp_path, capsys):
    """Three hundred steps of the shipped recipe, on one skill that is learned soon."""
    overrides = [
        "data.options={batch_size: 64, skills: [sorting]}",
        "training.compile=false",
        "training.max_steps=300",
        "training.warmup_steps=30",
        "training.lr_scheduler_kwargs.num_decay_steps=150",
        "training.logging_steps=20",
        "training.save_strategy=no",
    ]
    folder = train(load_recipe("llada-tiny", overrides), tmp_path / "model")
    losses = [float(value) for value in re.findall(r" loss ([\d.]+)", capsys.readouterr().err)]
    assert losses[-1] < losses[0] / 4
    chosen = evaluate.held_out_exercises("sorting", 50, seed=0)
    trained = dllm.sampler("mdlm", dllm.load(folder), max_new_tokens=evaluate.NEW_TOKENS, block_size=None)
    # An untrained model gets none of them, and a guess of three digits is right once in a thousand times.
    assert evaluate.count_correct(trained, chosen, batch_size=50) >= 10


def test_more_exercises_than_there_are_is_a_clear_error():
    with pytest.raises(dllm.OptionError, match="held-out exercises, not 3000; lower count"):
        evaluate.held_out_exercises("equation", 3000, seed=0)
    with pytest.raises(dllm.OptionError, match="count"):
        evaluate.held_out_exercises("equation", 0, seed=0)
