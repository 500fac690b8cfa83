"""Wrapped collators and packing: what a batch holds, and that nothing random comes from outside."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dllm_core as dllm
from dllm_core.config import at_least
from dllm_core.errors import ComponentLoadError, DataError, OptionError
from dllm_core.training.collator import DiffusionCollator
from dllm_core.training.packing import PackingCollator, first_fit
from dllm_core.training.wrappers import (
    AppendEOSBlockWrapper,
    CollatorWrapper,
    NoAttentionMaskWrapper,
    PrependBOSWrapper,
    RandomTruncateWrapper,
)
from dllm_core.training.wrapping import check_wrappers, wrap, wrapped_length

PADS = DiffusionCollator(pad_token_id=9)
EXAMPLES = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4, 5, 6, 7, 8]}]
example_lists = st.lists(
    st.lists(st.integers(1, 8), min_size=1, max_size=12).map(lambda ids: {"input_ids": ids}), min_size=1, max_size=9
)


def test_bos_stands_before_every_row_and_is_context_and_attended():
    batch = PrependBOSWrapper(PADS, bos_token_id=0)(EXAMPLES)  # 0 is a token like others
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3, 9, 9], [0, 4, 5, 6, 7, 8]]
    assert batch["labels"].tolist() == [[-100, -100, 2, 3, -100, -100], [-100, 4, 5, 6, 7, 8]]
    assert batch["attention_mask"].sum(1).tolist() == [4, 6]


def test_blocks_are_filled_with_ends_that_are_learned_and_attended():
    batch = AppendEOSBlockWrapper(PADS, eos_token_id=7, block_size=4)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 7, 9, 9, 9, 9], [4, 5, 6, 7, 8, 7, 7, 7]]
    assert batch["labels"][0].tolist() == [-100, 2, 3, 7, -100, -100, -100, -100]
    assert batch["attention_mask"].sum(1).tolist() == [4, 8]
    assert EXAMPLES[0] == {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}


def test_without_attention_mask_nothing_else_changes():
    bare, batch = NoAttentionMaskWrapper(PADS)(EXAMPLES), PADS(EXAMPLES)
    assert set(batch) - set(bare) == {"attention_mask"}
    assert all(torch.equal(bare[name], batch[name]) for name in bare)


@given(example_lists, st.integers(0, 5))
def test_truncation_follows_from_content_and_seed_alone(examples, seed):
    cut = RandomTruncateWrapper(PADS, random_length_ratio=1.0, seed=seed)
    state = torch.random.get_rng_state()
    first = cut(examples)
    torch.rand(3)
    again = cut(examples)
    torch.random.set_rng_state(state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    whole = PADS(examples)
    length = first["input_ids"].shape[1]
    assert 1 <= length <= whole["input_ids"].shape[1]
    assert torch.equal(first["input_ids"], whole["input_ids"][:, :length])


def test_truncation_draws_as_often_as_asked_and_keeps_something_to_learn():
    cut = RandomTruncateWrapper(PADS, random_length_ratio=0.25)
    batches = [[{"input_ids": [n % 7, n // 7] * 10, "labels": [-100] * 15 + [1] * 5}] for n in range(400)]
    lengths = [cut(batch)["input_ids"].shape[1] for batch in batches]
    assert 65 <= sum(length < 20 for length in lengths) <= 105  # 80 expected: a fifth of the draws keeps all 20
    assert min(lengths) == 16
    assert len(set(lengths)) == 5
    seldom = RandomTruncateWrapper(PADS, random_length_ratio=0.0)
    assert all(seldom(batch)["input_ids"].shape[1] == 20 for batch in batches)


@given(st.lists(st.integers(1, 20), max_size=40))
def test_first_fit_is_what_its_name_says(lengths):
    rows: list[list[int]] = []
    for item, length in enumerate(lengths):
        fitting = (row for row in rows if sum(lengths[other] for other in row) + length <= 20)
        row = next(fitting, None)
        rows.append([item]) if row is None else row.append(item)
    assert first_fit(lengths, 20) == rows


@given(example_lists)
def test_packing_loses_and_mixes_nothing(examples):
    batch = PackingCollator(pad_token_id=9, max_length=12)(examples)
    found = []
    for ids, labels, documents in zip(*(batch[name].tolist() for name in batch), strict=True):
        assert documents == sorted(documents, key=lambda number: (number < 0, number))  # padding stands at the end
        for number in range(max(documents) + 1):
            found.append([token for token, document in zip(ids, documents, strict=True) if document == number])
        assert [token if document >= 0 else -100 for token, document in zip(ids, documents, strict=True)] == labels
    assert sorted(found) == sorted(example["input_ids"] for example in examples)


def test_packing_refuses_what_does_not_fit():
    with pytest.raises(DataError, match="has 5 tokens, a packed row holds 4"):
        PackingCollator(pad_token_id=9, max_length=4)(EXAMPLES)


class Repeat(CollatorWrapper):
    """What somebody else might write: every example's tokens several times, and a token of the model behind them."""

    model_tokens = ("pad_token_id",)

    def __init__(self, collator, pad_token_id: int | None, times: int) -> None:
        super().__init__(collator)
        at_least("times", times, 1)
        self.times, self.end = times, [pad_token_id]

    @classmethod
    def longest(cls, length, options):
        return length * options["times"] + 1

    def before(self, examples):
        return [{"input_ids": example["input_ids"] * self.times + self.end} for example in examples]


@pytest.fixture
def acme(monkeypatch):
    """A module of somebody else, under a name that can be imported."""
    module = types.ModuleType("acme_collators")
    module.Repeat = Repeat
    monkeypatch.setitem(sys.modules, "acme_collators", module)


def test_a_recipe_takes_wrappers_of_others_by_their_import_string(acme):
    denoiser = dllm.load("llada-tiny", device="cpu")
    entries = ["prepend_bos", {"name": "acme_collators:Repeat", "times": "2"}]  # text, as from the command line
    check_wrappers(entries)
    assert wrapped_length(5, entries) == 13
    first, *_ = wrap(PADS, entries, denoiser)(EXAMPLES)["input_ids"].tolist()
    bos, pad = denoiser.bos_token_id, denoiser.pad_token_id
    assert first[:9] == [bos, 1, 2, 3, bos, 1, 2, 3, pad]


def test_a_recipe_lists_wrappers_in_the_order_in_which_they_act():
    denoiser = dllm.load("llada-tiny", device="cpu")
    entries = ["prepend_bos", {"name": "append_eos_block", "block_size": 4}]
    packed = wrap(PackingCollator(pad_token_id=9, max_length=wrapped_length(5, entries)), entries, denoiser)(EXAMPLES)
    assert packed["input_ids"].shape == (2, 8)
    assert (packed["document_ids"] >= 0).sum(1).tolist() == [4, 8]
    assert packed["input_ids"][:, 0].tolist() == [denoiser.bos_token_id] * 2


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("prepend", "Did you mean 'prepend_bos'"),
        ({"name": "random_truncate", "ratio": 0.1}, "random_length_ratio"),
        ({"block_size": 4}, "give a name"),
        ({"name": "append_eos_block", "block_size": "many"}, "must be a whole number, got 'many'"),
        ({"name": "random_truncate", "random_length_ratio": 1.5}, "random_length_ratio must be between 0.0 and 1.0"),
        ({"name": "append_eos_block", "block_size": 0}, "block_size must be at least 1"),
        ("acme_collators:Repeat", "option 'times' is required"),
        ({"name": "acme_collators:Repeat", "times": 0}, "times must be at least 1"),
        ({"name": "acme_collators:Repeat", "tims": 2}, "Did you mean 'times'"),
        ("acme_collators:LOST", "cannot import 'acme_collators:LOST'"),
        ("acme_collatorz:Repeat", "No module named 'acme_collatorz'"),
        ("collections:OrderedDict", "no subclass of dllm_core.training.CollatorWrapper"),
    ],
)
def test_wrong_wrappers_of_a_recipe_are_refused(entry, message, acme):
    with pytest.raises((OptionError, ComponentLoadError), match=message):
        check_wrappers([entry])
    with pytest.raises(OptionError, match="token id"):
        PrependBOSWrapper(PADS, None)
