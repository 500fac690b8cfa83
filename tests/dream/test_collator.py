"""Responses cut while fine-tuning: what is kept, how often which length is drawn, and from what."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from dllm_dream.collator import ResponseCutoffWrapper
from hypothesis import given
from hypothesis import strategies as st

from dllm_core.errors import OptionError
from dllm_core.training import DiffusionCollator
from dllm_core.training.wrapping import check_wrappers, wrapped_length

NAME = "dllm_dream.collator:ResponseCutoffWrapper"
PADS = DiffusionCollator(pad_token_id=0, learn_padding=True)


def example(prompt: int, response: int, token: int = 1) -> dict:
    ids = [token] * prompt + [token + 1] * response
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:], "prompt_len": prompt}


def response_of(given: dict) -> int:
    return sum(label != -100 for label in given["labels"])


batches = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(1, 3)), min_size=1, max_size=6)


@given(batches, st.integers(0, 99))
def test_responses_are_cut_to_the_length_of_one_of_them(sizes, seed):
    examples = [example(*size) for size in sizes]
    examples = [one for one in examples if one["input_ids"]] or [example(1, 1)]
    got = ResponseCutoffWrapper(PADS, seed=seed).before(examples)
    lengths = [response_of(one) for one in examples]
    kept = [response_of(one) for one in got]
    cap = max(kept)
    assert kept == [min(length, cap) for length in lengths]
    assert cap in lengths
    assert cap > 0 or not any(lengths)
    for before, after in zip(examples, got, strict=True):
        assert before["input_ids"][: len(after["input_ids"])] == after["input_ids"]
        assert len(after["labels"]) == len(after["input_ids"])
        assert after["prompt_len"] == before["prompt_len"] <= len(after["input_ids"])


def test_every_response_is_as_likely_to_give_the_length():
    """Two of four responses have 2 tokens, so half of the batches are cut to 2."""
    runs = 1200
    wrapper = ResponseCutoffWrapper(PADS)
    drawn = Counter(
        max(map(response_of, wrapper.before([example(1, 2, n), example(2, 2, n), example(1, 5, n), example(1, 9, n)])))
        for n in range(runs)
    )
    assert drawn.keys() == {2, 5, 9}
    for length, share in ((2, 0.5), (5, 0.25), (9, 0.25)):
        assert abs(drawn[length] / runs - share) < 4 * (share * (1 - share) / runs) ** 0.5


def test_a_tail_is_shorter_than_the_shortest_response_and_cut_from_the_padded_batch():
    examples = [example(10, 30), example(10, 8), example(20, 12)]
    wrapper = ResponseCutoffWrapper(PADS, perbatch_cutoff=False, resp_cutoff_ratio=1.0)
    lengths = Counter(
        ResponseCutoffWrapper(PADS, False, 1.0, seed)(examples)["input_ids"].shape[1] for seed in range(200)
    )
    assert set(lengths) == set(range(40 - 7, 40))
    whole = PADS(examples)
    batch = wrapper(examples)
    for name, values in batch.items():
        assert torch.equal(values, whole[name][:, : values.shape[1]])
    assert wrapper.before([example(3, 1), example(3, 9)]) == [example(3, 1), example(3, 9)]


def test_a_share_of_the_batches_loses_a_tail():
    wrapper = ResponseCutoffWrapper(PADS, perbatch_cutoff=False, resp_cutoff_ratio=0.25)
    shorter = sum(len(wrapper.before([example(2, 9, n)])[0]["input_ids"]) < 11 for n in range(400))
    assert 65 <= shorter <= 135
    never = ResponseCutoffWrapper(PADS, perbatch_cutoff=False)
    assert all(never.before([example(2, 9, n)]) == [example(2, 9, n)] for n in range(20))


def test_a_batch_is_cut_alike_whatever_was_drawn_before():
    examples = [example(1, length) for length in (2, 4, 6, 8)]
    wrapper = ResponseCutoffWrapper(PADS)
    before = torch.random.get_rng_state()
    first = wrapper(examples)
    torch.rand(3)
    assert torch.equal(wrapper(examples)["input_ids"], first["input_ids"])
    torch.random.set_rng_state(before)
    assert len({ResponseCutoffWrapper(PADS, seed=seed)(examples)["input_ids"].shape[1] for seed in range(50)}) == 4


def test_a_recipe_names_it_by_its_import_string():
    entry = {"name": NAME, "perbatch_cutoff": False, "resp_cutoff_ratio": 0.1}
    check_wrappers([NAME, entry])
    assert wrapped_length(7, [entry]) == 7
    for wrong, message in (
        ({"resp_cutoff_ratio": 2}, "between 0.0 and 1.0"),
        ({"resp_cutoff_ratio": 0.5}, "leave one"),
    ):
        with pytest.raises(OptionError, match=message):
            check_wrappers([{"name": NAME, **wrong}])
