"""Block diffusion: what is computed, what is kept, where blocks lie, and that the law is the model's own."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

import dllm_core as dllm
from dllm_core.conformance.chi_square import expect_fit
from dllm_core.conformance.counting import counted
from dllm_core.conformance.toy import ExactModel, ToyAdapter, random_joint, toy_denoiser
from dllm_core.errors import OptionError
from dllm_core.samplers.canvas import completion_canvas

VOCAB, MASK, EOS, PAD = 12, 11, 1, 0


class AnyAdapter(dllm.ModelAdapter):
    supports_kv_cache = True
    supports_block_causal = True

    def context_length(self, config: object) -> None:
        return None


@cache
def denoiser(shifted: bool = False, implementation: str = "sdpa") -> dllm.Denoiser:
    """Three layers, so that what a kept key knows depends on what could be seen when it was made."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=VOCAB, num_key_value_heads=1, initializer_range=0.3, **sizes)
    config._attn_implementation = implementation
    model = LlamaForCausalLM(config)
    model = model.double().eval()
    model.config.is_causal = False
    special = {"mask": MASK, "eos": EOS, "pad": PAD}
    return dllm.Denoiser(model, AnyAdapter(), special_ids=special, logits_are_shifted=shifted)


def canvases(sampler: dllm.Sampler, prompts: list[list[int]], infill: bool = False) -> list[torch.Tensor]:
    state = (sampler.start_infill if infill else sampler.start)([list(row) for row in prompts])
    found = [state.input_ids.clone()]
    while not state.finished:
        found.append(sampler.step(state).input_ids)
    return found


# -- what is computed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shifted", [False, True])
def test_the_prefix_is_encoded_once(shifted):
    """The first pass computes prompt and block, the first of each later block that block and the one before it."""
    sampler = dllm.BD3LMSampler(denoiser(shifted), max_new_tokens=12, block_size=4, stop_at_eos=False)
    shapes = []
    model = denoiser(shifted).model
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        stats = sampler.sample([[2] * 20]).stats
    finally:
        handle.remove()
    assert shapes == [(1, 24), *[(1, 4)] * 3, (1, 8), *[(1, 4)] * 3, (1, 8), *[(1, 4)] * 3]
    assert stats.positions_processed == 20 + 12 + 9 * 4 + 2 * 4
    assert stats.forward_passes == 12
    # Open positions left: 4, 3, 2, 1 in each block; a shifted family also asks for the scores that it carries over.
    assert stats.logit_rows == 3 * 10 + 3 * shifted


def test_positions_do_not_grow_with_the_prompt_after_the_first_pass():
    short, long = (
        dllm.BD3LMSampler(denoiser(), max_new_tokens=16, block_size=4, stop_at_eos=False).sample([[2] * n]).stats
        for n in (4, 400)
    )
    assert long.positions_processed - short.positions_processed == 396
    plain = dllm.BD3LMSampler(denoiser(), cache="none", max_new_tokens=16, block_size=4, stop_at_eos=False)
    assert plain.sample([[2] * 400]).stats.positions_processed == 4 * (404 + 408 + 412 + 416)


def test_finished_rows_leave_the_cache():
    """Rows that end early are computed no more: what a batch costs is what its rows cost, block by block."""
    sampler = dllm.BD3LMSampler(denoiser(), max_new_tokens=16, block_size=2, temperature=1.0, seed=0)
    prompts = [[3, 4], [5, 6], [7, 8], [9, 10]]
    state = sampler.start(prompts)
    kept = []
    while not state.finished:
        sampler.step(state)
        kept.append(state.cache.cache.rows)
    assert kept[0] == 4
    assert sorted(kept, reverse=True) == kept
    assert 1 <= kept[-1] < 4


def test_the_memory_of_the_cache_is_in_the_counts():
    for guided in (0.0, 1.0):
        sampler = dllm.BD3LMSampler(denoiser(), max_new_tokens=8, block_size=4, guidance_scale=guided)
        with counted(denoiser()) as counts:
            stats = sampler.sample([[3, 4, 5], [6]]).stats
        rows = 4 if guided else 2
        assert stats.cache_bytes == counts.cache_bytes == 2 * 3 * rows * 1 * (3 + 8 + 1) * 8 * 8
    assert dllm.BD3LMSampler(denoiser(), cache="none").sample([[3]]).stats.cache_bytes == 0


# -- where blocks lie -------------------------------------------------------------------------------------------------


def test_blocks_of_the_absolute_grid_begin_at_multiples():
    canvas = completion_canvas([[2] * 3, [2] * 8, [2] * 9], [6, 6, 6], 4, MASK, "absolute")
    assert [canvas.span(0, n) for n in range(canvas.blocks(0))] == [(0, 4), (4, 8), (8, 9)]
    assert [canvas.span(1, n) for n in range(canvas.blocks(1))] == [(8, 12), (12, 14)]
    assert [canvas.span(2, n) for n in range(canvas.blocks(2))] == [(8, 12), (12, 15)]
    assert [canvas.masks(0, n) for n in range(3)] == [1, 4, 1]


def test_blocks_of_the_completion_grid_begin_at_the_prompts_end():
    canvas = completion_canvas([[2] * 3, [2] * 8], [6, 6], 4, MASK, "completion")
    assert [canvas.span(0, n) for n in range(canvas.blocks(0))] == [(3, 7), (7, 9)]
    assert [canvas.span(1, n) for n in range(canvas.blocks(1))] == [(8, 12), (12, 14)]


def pattern_of(length: int, size: int, offset: int) -> torch.Tensor:
    """Blocks spelled out: position i is in block (i - offset) // size, and looks at no later block."""
    block = [(i - offset) // size for i in range(length)]
    return torch.tensor([[[[key <= query for key in block] for query in block]]])


@pytest.mark.parametrize(("grid", "offset"), [("absolute", 0), ("completion", 5)])
@pytest.mark.parametrize("shifted", [False, True])
def test_one_step_writes_what_a_full_forward_with_the_pattern_scores_best(grid, offset, shifted):
    options = {"max_new_tokens": 3, "block_size": 8 if grid == "absolute" else 4, "steps": 1, "block_grid": grid}
    prompt = [3, 9, 4, 7, 2]
    got = dllm.BD3LMSampler(denoiser(shifted), **options).sample([prompt]).sequences[0]
    with torch.no_grad():
        ids = torch.tensor([prompt + [MASK] * 3])
        logits = denoiser(shifted).logits(ids, attention=pattern_of(8, options["block_size"], offset))
    logits[..., MASK] = -torch.inf
    assert got.tolist() == prompt + logits[0, 5:].argmax(-1).tolist()


def test_an_end_of_sequence_in_the_prompts_tail_ends_nothing():
    sampler = dllm.BD3LMSampler(denoiser(), max_new_tokens=8, block_size=4, suppress_tokens=[EOS])
    output = sampler.sample([[3, EOS], [3, EOS, 4, 5, EOS]])
    assert output.stats.tokens == 16
    assert not bool((output.sequences == MASK).any())


# -- nothing depends on the cache or on the batch ---------------------------------------------------------------------

PROMPT = st.lists(st.integers(2, VOCAB - 2), min_size=1, max_size=9)
OPTIONS = st.fixed_dictionaries(
    {
        "max_new_tokens": st.integers(1, 9),
        "block_size": st.sampled_from([1, 2, 3, 4, 7, None]),
        "block_grid": st.sampled_from(["absolute", "completion"]),
        "steps": st.sampled_from([None, 1, 3]),
        "temperature": st.sampled_from([0.0, 1.0]),
        "confidence": st.sampled_from(["probability", "random", "entropy"]),
        "guidance_scale": st.sampled_from([0.0, 0.5]),
        "stop_at_eos": st.booleans(),
        "seed": st.integers(0, 5),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PROMPT, min_size=1, max_size=4), OPTIONS, st.booleans())
def test_every_canvas_is_that_of_no_cache(prompts, options, shifted):
    cached, plain = (
        canvases(dllm.BD3LMSampler(denoiser(shifted), cache=name, **options), prompts) for name in ("block", "none")
    )
    assert len(cached) == len(plain)
    assert all(torch.equal(a, b) for a, b in zip(cached, plain, strict=True))
    rows = zip(cached[-1].tolist(), prompts, strict=True)
    assert not any(MASK in row[: len(prompt) + options["max_new_tokens"]] for row, prompt in rows)


@settings(max_examples=40, deadline=None)
@given(st.lists(PROMPT, min_size=2, max_size=4, unique_by=tuple), OPTIONS, st.booleans())
def test_a_row_gets_alone_what_it_gets_in_any_batch(prompts, options, shifted):
    options["block_size"] = options["block_size"] or 5  # None is as long as the longest row, by its definition
    sampler = dllm.BD3LMSampler(denoiser(shifted), **options)
    together = sampler.sample(prompts)
    for row, prompt in enumerate(prompts):
        alone = sampler.sample([prompt]).sequences[0]
        assert torch.equal(alone, together.sequences[row, : len(alone)])


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from([1, 2, 3, 5, None]), st.booleans())
def test_infilling_is_that_of_no_cache_and_touches_masks_only(data, block_size, shifted):
    token = st.one_of(st.just(MASK), st.integers(2, VOCAB - 2))
    rows = data.draw(
        st.lists(st.lists(token, min_size=1, max_size=9).filter(lambda r: MASK in r), min_size=1, max_size=3)
    )
    cached, plain = (
        canvases(dllm.BD3LMSampler(denoiser(shifted), cache=name, block_size=block_size), rows, infill=True)
        for name in ("block", "none")
    )
    assert all(torch.equal(a, b) for a, b in zip(cached, plain, strict=True))
    for row, filled in zip(rows, cached[-1].tolist(), strict=True):
        assert all(new == old for new, old in zip(filled, row, strict=False) if old != MASK)
        assert MASK not in filled[: len(row)]


@pytest.mark.parametrize("policy", ["block", "none"])
def test_eager_attention_writes_the_same(policy):
    """Eager attention would add a bool pattern to the scores as 0 and 1."""
    options = {"max_new_tokens": 12, "block_size": 4, "cache": policy}
    prompts = [[3, 4, 5], [7]]
    want, got = (dllm.BD3LMSampler(denoiser(False, each), **options).sample(prompts) for each in ("sdpa", "eager"))
    assert torch.equal(got.sequences, want.sequences)


def test_infilling_looks_back_only():
    """What comes after a mask's block does not matter to it; what is in front of it does."""
    sampler = dllm.BD3LMSampler(denoiser(), block_size=2)
    first = {
        tuple(sampler.infill([[3, 4, MASK, MASK, *tail]]).sequences[0, 2:4].tolist())
        for tail in itertools.product(range(2, 6), repeat=2)
    }
    assert len(first) == 1
    head = {
        tuple(sampler.infill([[*head, MASK, MASK, 2, 2]]).sequences[0, 2:4].tolist())
        for head in itertools.product(range(2, 10), repeat=2)
    }
    assert len(head) > 1


# -- the law ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_name", ["block", "none"])
@pytest.mark.parametrize(("block_size", "confidence"), [(1, "probability"), (2, "random"), (3, "entropy")])
def test_one_token_a_step_reproduces_the_joint(block_size, confidence, cache_name):
    """On a block-causal toy with the exact posterior, block diffusion draws from the joint, whatever the blocks."""
    joint = random_joint(3, 4, seed=5)
    sampler = dllm.BD3LMSampler(
        toy_denoiser(joint),
        max_new_tokens=3,
        block_size=block_size,
        confidence=confidence,
        temperature=1.0,
        stop_at_eos=False,
        cache=cache_name,
    )
    rows = sampler.sample([[1]] * 3000).sequences[:, 1:]
    given_first = joint[1] / joint[1].sum()
    law = {state: float(given_first[state]) for state in itertools.product(range(3), repeat=3)}
    expect_fit(rows, law)


@pytest.mark.parametrize("grid", ["absolute", "completion"])
def test_one_step_a_block_follows_the_enumerated_law(grid):
    """Inside a block the tokens of one step are independent given all that is in front; blocks are not."""
    joint = random_joint(3, 5, seed=6)
    sampler = dllm.BD3LMSampler(
        toy_denoiser(joint),
        max_new_tokens=4,
        block_size=2,
        block_grid=grid,
        steps_per_block=1,
        temperature=1.0,
        stop_at_eos=False,
    )
    blocks = [[1], [2, 3], [4]] if grid == "absolute" else [[1, 2], [3, 4]]
    law: Counter = Counter()
    for state in itertools.product(range(3), repeat=4):
        tokens, probability = (2, *state), 1.0
        for block in blocks:
            front = joint[tokens[: block[0]]]
            for position in block:
                marginal = front.movedim(position - block[0], 0).flatten(1).sum(1) if front.dim() > 1 else front
                probability *= float(marginal[tokens[position]] / marginal.sum())
        law[state] = probability
    assert abs(sum(law.values()) - 1) < 1e-9
    expect_fit(sampler.sample([[2]] * 4000).sequences[:, 1:], law)


# -- what is refused --------------------------------------------------------------------------------------------------


class Bidirectional(ToyAdapter):
    supports_block_causal = False


class Cacheless(ToyAdapter):
    supports_kv_cache = False


def test_what_a_family_cannot_do_is_said_before_anything_is_computed():
    model = ExactModel(random_joint(2, 3, seed=0))
    for adapter, chosen, words in (
        (Bidirectional(), {}, "use sampler 'mdlm'"),
        (Cacheless(), {"cache": "block"}, "use cache='none'"),
    ):
        with pytest.raises(OptionError, match=words):
            dllm.BD3LMSampler(dllm.Denoiser(model, adapter, special_ids={"mask": 2}), **chosen)


def test_a_family_without_a_cache_is_sampled_without_where_none_is_chosen():
    model = ExactModel(random_joint(2, 3, seed=0))
    cacheless, other = (dllm.Denoiser(model, kind(), special_ids={"mask": 2}) for kind in (Cacheless, ToyAdapter))
    plain = dllm.BD3LMSampler(cacheless, max_new_tokens=2)
    assert plain.options.cache == "none"
    assert torch.equal(
        plain.sample([[1]]).sequences, dllm.BD3LMSampler(other, cache="none", max_new_tokens=2).sample([[1]]).sequences
    )


def test_the_block_cache_is_for_block_causal_attention():
    with pytest.raises(OptionError, match=r"cache='block' is for block_causal attention, .* is full; use cache='none'"):
        dllm.MDLMSampler(denoiser(), cache="block")


def test_grids_are_checked():
    with pytest.raises(OptionError, match=r"block_grid .*absolute.*completion"):
        dllm.sampler("bd3lm", denoiser(), block_grid="left")
    with pytest.raises(OptionError, match="unknown sampler option 'block_grid'"):
        dllm.sampler("mdlm", denoiser(), block_grid="absolute")


@settings(max_examples=25, deadline=None)
@given(st.lists(PROMPT, min_size=1, max_size=3), st.integers(1, 9), st.sampled_from([2, 3, 5]), st.booleans())
def test_whole_blocks_are_computed_and_cut_to_length(prompts, new, size, shifted):
    """The same as asking for as many tokens as fill the last block, whose tail is then not handed out."""
    options = {"block_size": size, "stop_at_eos": False}
    sampler = dllm.BD3LMSampler(denoiser(shifted), whole_blocks=True, max_new_tokens=new, **options)
    output = sampler.sample(prompts)
    assert output.lengths.tolist() == [len(prompt) + new for prompt in prompts]
    assert output.sequences.shape[1] == max(map(len, prompts)) + new
    *_, last = sampler.stream(prompts)
    assert torch.equal(last.input_ids, output.sequences)
    for row, prompt in enumerate(prompts):
        full = new + -(len(prompt) + new) % size
        alone = dllm.BD3LMSampler(denoiser(shifted), max_new_tokens=full, **options).sample([prompt])
        assert torch.equal(alone.sequences[0, : len(prompt) + new], output.sequences[row, : len(prompt) + new])
