"""Prompts: text, chats and ids in every form, and a one-line answer to what cannot be one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import dllm_core as dllm
from dllm_core.conformance.toy import ExactModel, ToyAdapter, random_joint, toy_denoiser
from dllm_core.errors import OptionError, PromptError

WORDS = ("a", "b", "c", "<eos>", "user:", "[M]")
MASK, LENGTH = 5, 5
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'critic' %}{{ raise_exception('no critics') }}{% endif %}"
    "user: {{ m.content }} {% endfor %}"
)


@pytest.fixture(scope="module")
def denoiser():
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="c"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, mask_token="[M]", eos_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    return dllm.Denoiser(ExactModel(random_joint(5, LENGTH, seed=0)), ToyAdapter(), tokenizer)


@pytest.fixture(scope="module")
def bare():
    return toy_denoiser(random_joint(5, LENGTH, seed=0), eos=3)


def sampler(denoiser, **options):
    return dllm.sampler("mdlm", denoiser, **({"max_new_tokens": 2} | options))


@pytest.mark.parametrize(
    ("prompts", "rows"),
    [
        ("a b", [[0, 1]]),
        (["a b", "c"], [[0, 1], [2]]),
        (("a b", "c"), [[0, 1], [2]]),
        ([0, 1], [[0, 1]]),
        ((0, 1), [[0, 1]]),
        ([[0, 1], [2]], [[0, 1], [2]]),
        (torch.tensor([0, 1]), [[0, 1]]),
        (torch.tensor([[0, 1], [2, 2]]), [[0, 1], [2, 2]]),
        ([torch.tensor([0, 1]), torch.tensor([2])], [[0, 1], [2]]),
        (np.array([0, 1]), [[0, 1]]),
        ([np.int64(0), np.int64(1)], [[0, 1]]),
        ([{"role": "user", "content": "b"}], [[4, 1]]),
        ([[{"role": "user", "content": "b"}], "c"], [[4, 1], [2]]),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], [[4, 0, 4, 1]]),
        ("word unknown", [[2, 2]]),
    ],
)
def test_prompts_of_every_form(denoiser, prompts, rows):
    out = sampler(denoiser, max_new_tokens=1).sample(prompts)
    assert [row[:n] for row, n in zip(out.sequences.tolist(), out.prompt_lengths.tolist(), strict=True)] == rows
    assert out.lengths.tolist() == [len(row) + 1 for row in rows]


def test_the_prompt_may_be_named_prompt(denoiser):
    assert torch.equal(sampler(denoiser).sample(prompt="a").sequences, sampler(denoiser).sample("a").sequences)
    for wrong in ({}, {"prompts": "a", "prompt": "b"}):
        with pytest.raises(PromptError, match="give the prompts once"):
            sampler(denoiser).sample(**wrong)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ("", ["empty", "give some text"]),
        ("  \n", ["empty"]),
        (["a", ""], ["empty"]),
        ([[0, 1], []], ["empty", "beginning-of-sequence"]),
        ([[]], ["empty"]),
        ([], ["no prompts", "give at least one"]),
        (torch.tensor([], dtype=torch.int64), ["no prompts"]),
        ([{"role": "user", "content": " "}], ["empty", "give some text"]),
        ([{"role": "user"}], ["'role' and a 'content'", "{'role': 'user'}"]),
        ([{"role": "user", "content": None}], ["'content'", "None"]),
        ([{"role": "user", "content": "a"}, "b"], ["'role' and a 'content'", "'b'"]),
        ({"role": "user", "content": "a"}, ["a list of chat messages", "'content': 'a'"]),
        ([{"role": "critic", "content": "a"}], ["chat template refuses", "no critics"]),
        ("a [M] b", ["prompt 0", "mask token (id 5)", "infill"]),
        ([[0], [1, MASK]], ["prompt 1", "mask token", "infill"]),
        ([0, 6], ["6 is not a token id", "0 to 5"]),
        ([0, -1], ["-1 is not a token id"]),
        ([0, 1.5], ["1.5 is not a token id"]),
        ([[0, "a"]], ["'a' is not a token id"]),
        (7, ["a prompt is text", "got 7"]),
        ([None], ["a prompt is text", "got None"]),
        (torch.tensor(3), ["a prompt is text"]),
        ("a b c a", ["prompt 0 has 4 tokens and 2 more", "context is 5", "max_new_tokens"]),
        ([[0], [0] * 9], ["prompt 1 has 9 tokens"]),
    ],
)
def test_what_cannot_be_a_prompt(denoiser, prompts, words):
    for start in (sampler(denoiser).start, sampler(denoiser).sample):
        with pytest.raises(PromptError) as caught:
            start(prompts)
        assert_says(caught.value, words)


@pytest.mark.parametrize(
    ("canvases", "words"),
    [
        ("a b", ["canvas 0 has no mask token", "'[M]'", "id 5", "put one"]),
        ([[0, MASK], [0, 1]], ["canvas 1 has no mask token"]),
        ([0, 1, MASK, 0, 1, 2], ["canvas 0 has 6 tokens", "context is 5", "shorten it"]),
        ("", ["empty"]),
    ],
)
def test_what_cannot_be_infilled(denoiser, canvases, words):
    with pytest.raises(PromptError) as caught:
        sampler(denoiser).infill(canvases)
    assert_says(caught.value, words)


def test_without_a_tokenizer_prompts_are_ids(bare):
    with pytest.raises(PromptError, match=r"without a tokenizer.*give ids"):
        sampler(bare).sample("a")
    with pytest.raises(PromptError, match="no chat template"):
        sampler(bare).sample([{"role": "user", "content": "a"}])
    with pytest.raises(PromptError, match=r"no mask token \(id 5\)"):
        sampler(bare).infill([0, 1])
    out = sampler(bare).sample([[0, 1], [2]])
    assert out.texts is None
    completions = [out.sequences[0, 2:4].tolist(), out.sequences[1, 1:3].tolist()]
    assert str(out) == "\n".join(" ".join(map(str, row)) for row in completions)


def test_the_default_length_fits_the_context(bare):
    assert sampler(bare, max_new_tokens=None).sample([[0, 1], [2]]).lengths.tolist() == [LENGTH, LENGTH]


def test_no_room_is_left_under_max_length(bare):
    assert sampler(bare, max_new_tokens=None).sample([[0, 1], [2]], max_length=4).lengths.tolist() == [4, 4]
    with pytest.raises(PromptError, match=r"prompt 1 has 4 tokens, which leaves nothing.*raise max_length"):
        sampler(bare).sample([[0, 1], [0, 1, 2, 0]], max_length=4)
    with pytest.raises(PromptError, match=r"prompt 0 has 5 tokens.*context is 5; shorten the prompt"):
        sampler(bare, max_new_tokens=None).sample([0, 1, 2, 0, 1])
    with pytest.raises(OptionError, match="max_length must be at least 1, got 0"):
        sampler(bare).sample([0], max_length=0)


@pytest.mark.parametrize("seed", [[1], [1, 2, 3]])
def test_seeds_are_one_for_all_or_one_a_prompt(bare, seed):
    with pytest.raises(OptionError, match=rf"seed has {len(seed)} values for 2 prompts; give one int"):
        sampler(bare, seed=seed).sample([[0], [1]])


def test_texts_are_completions_cut_at_the_end_of_sequence_without_special_tokens(denoiser):
    """A joint that always goes on "b c <eos> a"."""
    joint = torch.zeros((5,) * LENGTH, dtype=torch.float64)
    joint[:, 1, 2, 3, 0] = 0.2
    certain = dllm.Denoiser(ExactModel(joint), ToyAdapter(), denoiser.tokenizer)
    out = sampler(certain, max_new_tokens=4, stop_at_eos=False).sample(["a", "b"])
    assert out.texts == ["b c", "b c"]
    assert str(out) == "b c\nb c"
    assert out.stats.tokens == 4
    assert out.sequences[0].tolist() == [0, 1, 2, 3, 0]
    whole = sampler(certain).infill("a [M] c [M] [M]")
    assert whole.texts == ["a b c a"]
    assert whole.stats.tokens == 3
    assert whole.prompt_lengths.tolist() == [0]


def test_a_finished_run_takes_no_step_and_an_unfinished_one_gives_no_result(bare):
    run = sampler(bare)
    state = run.start([0])
    with pytest.raises(PromptError, match="not finished; call step"):
        run.finish(state)
    while not state.finished:
        run.step(state)
    with pytest.raises(PromptError, match="finished; start another"):
        run.step(state)
    assert run.finish(state).sequences.shape == (1, 3)


def assert_says(error: Exception, words: list[str]) -> None:
    message = str(error)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
