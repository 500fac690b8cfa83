"""LLaDA 2.0 and 2.1 generation against published runs: every canvas of every run, token by token.

Figures of ZHZisZZ/dllm at ca17675 (float32, CPU, greedy). The published samplers take equal prompts or one, and encode
the whole prefix in every step; here rows go at their own pace and finished blocks are kept.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import dllm_core as dllm

GOLDENS = Path(__file__).parent / "goldens"
SAMPLERS = {"LLaDA2Sampler": "llada2", "LLaDA21Sampler": "llada21"}
CASES = [
    (folder, case)
    for folder in ("llada2", "llada21")
    for case in json.loads((GOLDENS / folder / "cases.json").read_text())["cases"]
    if case["kind"] == "sampler"
]
EXACT = [pytest.param(*each, id=each[1]["id"]) for each in CASES if not each[1].get("quirks")]
(LEAVES_MASKS,) = [each for each in CASES if each[1].get("quirks") == ["early_stop_leaves_masks"]]


def test_no_case_is_left_out():
    assert len(CASES) == 48
    assert len(EXACT) == 47


@cache
def denoiser(folder: str) -> dllm.Denoiser:
    special_ids = json.loads((GOLDENS / folder / "cases.json").read_text())["special_ids"]
    return dllm.load(GOLDENS / folder, device="cpu", dtype="float32", special_ids=special_ids)


@cache
def tensors(folder: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / folder / "cases.safetensors")


def sampler_of(folder: str, case: dict, **changes: object) -> dllm.BD3LMSampler:
    params = case["params"]
    options = {name: params[name] for name in ("max_new_tokens", "block_size", "temperature", "threshold")}
    if case["sampler"] == "LLaDA2Sampler":  # minimal_topk only lowers the number of steps
        options["steps_per_block"] = min(params["steps_per_block"], params["max_new_tokens"] // params["minimal_topk"])
    else:
        options["steps_per_block"] = params["block_size"] // params["num_to_transfer"]
        options |= {name: params[name] for name in ("editing_threshold", "max_post_steps")}
    # The early stop of 2.1 waits for the end of the block, as ours does; that of 2.0 leaves masks where it applies.
    stop = params["eos_early_stop"] and case["sampler"] == "LLaDA21Sampler"
    return dllm.sampler(SAMPLERS[case["sampler"]], denoiser(folder), **(options | {"stop_at_eos": stop} | changes))


def canvases(sampler: dllm.BD3LMSampler, prompts: list[list[int]]) -> torch.Tensor:
    """Our canvases in whole blocks, start canvas first. -> (S, B, L)"""
    state = sampler.start(prompts)
    found = [state.input_ids.clone()]
    while not state.finished:
        sampler.step(state)
        found.append(state.input_ids.clone())
    return torch.stack(found)


def published(folder: str, case: dict) -> torch.Tensor:
    return tensors(folder)[f"{case['id']}.out.history"].long()


@pytest.mark.parametrize("policy", ["block", "none"])
@pytest.mark.parametrize(("folder", "case"), EXACT)
def test_every_canvas_is_the_published_one(folder, case, policy):
    got, want = canvases(sampler_of(folder, case, cache=policy), case["prompts"]), published(folder, case)
    assert got.shape == want.shape
    assert torch.equal(got, want)


@pytest.mark.parametrize(("folder", "case"), [each for each in EXACT if len(each.values[1]["prompts"]) > 1])
def test_a_row_alone_passes_through_the_same_canvases(folder, case):
    want = published(folder, case)
    for row, prompt in enumerate(case["prompts"]):
        got = canvases(sampler_of(folder, case), [prompt])[:, 0]
        assert torch.equal(got, want[:, row].unique_consecutive(dim=0))


def test_where_the_published_early_stop_leaves_masks():
    """There the block is left with its masks as soon as a row of it holds an end of sequence; ours ends rows behind
    whole blocks. Up to that step the canvases are the same."""
    folder, case = LEAVES_MASKS
    want = published(folder, case)
    mask, eos = denoiser(folder).mask_token_id, denoiser(folder).eos_token_id
    got = canvases(sampler_of(folder, case), case["prompts"])
    assert int((want[-1] == mask).sum()) == case["remaining_masks"] == 2
    assert not bool((got[-1] == mask).any())
    first = next(step for step, canvas in enumerate(want) if bool((canvas == eos).any()))
    assert torch.equal(got[: first + 1], want[: first + 1])
    assert not bool((canvases(sampler_of(folder, case, stop_at_eos=True), case["prompts"])[-1] == mask).any())


@pytest.mark.parametrize(("folder", "case"), EXACT)
def test_fewer_positions_are_computed_and_the_result_is_cut_to_length(folder, case):
    output = sampler_of(folder, case).sample(case["prompts"])
    assert output.stats.forward_passes == case["nfe"]
    assert output.stats.positions_processed <= case["forward_tokens"]
    assert output.lengths.tolist() == [len(p) + case["params"]["max_new_tokens"] for p in case["prompts"]]
    assert output.sequences.shape[1] == max(output.lengths)


PROMPT = st.lists(st.integers(0, 150), min_size=1, max_size=9)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(PROMPT, min_size=2, max_size=3, unique_by=tuple),
    st.sampled_from(["llada2", "llada21"]),
    st.sampled_from([2, 4]),
    st.sampled_from([0.2, 0.5, 0.95]),
    st.sampled_from([0.0, 1.0]),
    st.booleans(),
)
def test_a_ragged_batch_gives_each_row_what_it_gets_alone(prompts, name, size, threshold, temperature, stop):
    options = {"block_size": size, "threshold": threshold, "temperature": temperature, "stop_at_eos": stop}
    editing = {"editing_threshold": threshold, "max_post_steps": 3} if name == "llada21" else {}
    sampler = dllm.sampler(name, denoiser(name), max_new_tokens=7, **options, **editing)
    together = sampler.sample(prompts)
    assert not bool((together.sequences == denoiser(name).mask_token_id).any())
    for row, prompt in enumerate(prompts):
        assert torch.equal(sampler.sample([prompt]).sequences[0], together.sequences[row, : len(prompt) + 7])


def test_without_editing_2_1_is_2_0():
    options = {"max_new_tokens": 20, "block_size": 4, "threshold": 0.5, "stop_at_eos": False}
    prompts = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6]]
    plain = canvases(dllm.sampler("llada2", denoiser("llada21"), **options), prompts)
    edited = dllm.sampler("llada21", denoiser("llada21"), editing_threshold=1.0, max_post_steps=0, **options)
    assert torch.equal(canvases(edited, prompts), plain)


def test_infilling_replaces_nothing_that_was_given():
    mask = denoiser("llada21").mask_token_id
    rows = [[3, mask, mask, 8, 9, mask], [mask, 4]]
    sampler = dllm.sampler("llada21", denoiser("llada21"), block_size=3, editing_threshold=0.0, threshold=0.1)
    filled = sampler.infill(rows)
    for row, text in zip(rows, filled.sequences.tolist(), strict=True):
        assert mask not in text[: len(row)]
        assert all(new == old for new, old in zip(text, row, strict=False) if old != mask)
