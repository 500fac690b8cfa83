"""Masked sampling and infilling on LLaDA models against published runs: every canvas of every run, token by token.

Figures of ZHZisZZ/dllm at ca17675 (float32, CPU, greedy). A row may not depend on the batch either: each is also run
alone and must pass through the same canvases.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dllm_core as dllm

GOLDENS = Path(__file__).parent / "goldens"
SCHEDULES = {"LinearAlphaScheduler": "linear", "CosineAlphaScheduler": "cosine"}
SAME_NAME = ("max_new_tokens", "block_size", "steps", "temperature")
RENAMED = {
    "cfg_scale": "guidance_scale",
    "cfg_keep_tokens": "guidance_keep_tokens",
    "suppress_tokens": "suppress_tokens",
    "begin_suppress_tokens": "suppress_confidence_tokens",
}


def is_ours(case: dict) -> bool:
    """The masked sampler's cases, and those of Fast-dLLM's that are plain masked sampling."""
    if case["kind"] != "sampler":
        return False
    accelerated = any(case["params"].get(name) is not None for name in ("use_cache", "threshold", "factor"))
    return case["sampler"] == "MDLMSampler" or (case["sampler"] == "FastdLLMLLaDASampler" and not accelerated)


CASES = [
    (folder, case)
    for folder in sorted(file.parent.name for file in GOLDENS.glob("*/cases.json"))
    for case in json.loads((GOLDENS / folder / "cases.json").read_text())["cases"]
    if is_ours(case)
]


def params_of(quirk: str | None) -> list:
    chosen = [(folder, case) for folder, case in CASES if case.get("quirks", []) == ([quirk] if quirk else [])]
    return [pytest.param(folder, case, id=f"{folder}-{case['id']}") for folder, case in chosen]


EXACT = params_of(None)
MASK_WRITTEN = params_of("mask_token_predicted_or_left")
FILLER_SEEN = params_of("pad_attended")


def test_no_case_is_left_out():
    assert (len(EXACT), len(MASK_WRITTEN), len(FILLER_SEEN)) == (66, 4, 7)
    assert len(CASES) == 77


@cache
def tensors(folder: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / folder / "cases.safetensors")


@cache
def denoiser(folder: str, shifted: bool) -> dllm.Denoiser:
    special_ids = json.loads((GOLDENS / folder / "cases.json").read_text())["special_ids"]
    return dllm.load(
        GOLDENS / folder, device="cpu", dtype="float32", special_ids=special_ids, logits_are_shifted=shifted
    )


def sampler_of(folder: str, case: dict, **changes: object) -> dllm.MDLMSampler:
    params = case["params"]
    options = {name: params[name] for name in SAME_NAME if name in params}
    options |= {new: params[old] for old, new in RENAMED.items() if params.get(old)}
    assert params["remasking"] == "low_confidence"  # our default, like block_size=None for one block
    options |= {"schedule": SCHEDULES[case["scheduler"]], "stop_at_eos": False} | changes
    return dllm.sampler("mdlm", denoiser(folder, bool(params["right_shift_logits"])), **options)


def published(folder: str, case: dict) -> torch.Tensor:
    """The canvases of the published run, start canvas first. -> (S, B, L)"""
    return tensors(folder)[f"{case['id']}.out.history"].long()


def lengths_of(case: dict) -> list[int]:
    return [len(prompt) + case["params"].get("max_new_tokens", 0) for prompt in case["prompts"]]


def history(sampler: dllm.MDLMSampler, case: dict, prompts: list[list[int]]) -> torch.Tensor:
    """The canvases of our run, start canvas first. -> (S, B, L)"""
    state = (sampler.start if case["method"] == "sample" else sampler.start_infill)(prompts)
    canvases = [state.input_ids.clone()]
    while not state.finished:
        canvases.append(sampler.step(state).input_ids)
    return torch.stack(canvases)


@pytest.mark.parametrize(("folder", "case"), EXACT)
def test_every_canvas_is_the_published_one(folder, case):
    want = published(folder, case)
    got = history(sampler_of(folder, case), case, case["prompts"])
    assert len(got) == len(want)
    sequences = tensors(folder)[f"{case['id']}.out.sequences"]
    for row, length in enumerate(lengths_of(case)):
        assert torch.equal(got[:, row, :length], want[:, row, :length])
        assert torch.equal(got[-1, row, :length], sequences[row, :length])


@pytest.mark.parametrize(("folder", "case"), EXACT)
def test_a_row_alone_passes_through_the_same_canvases(folder, case):
    changes = {}
    if case["method"] == "infill":  # there the published step budget counts the blocks of the longest canvas
        longest = max(lengths_of(case))
        blocks = math.ceil(longest / (case["params"]["block_size"] or longest))
        changes = {"steps": None, "steps_per_block": math.ceil(case["params"]["steps"] / blocks)}
    sampler = sampler_of(folder, case, **changes)
    for row, length in enumerate(lengths_of(case)):
        want = published(folder, case)[:, row, :length].unique_consecutive(dim=0)
        got = history(sampler, case, [case["prompts"][row]])[:, 0]
        assert torch.equal(got, want)  # with the row's own canvases only: none of its steps is idle


@pytest.mark.parametrize(("folder", "case"), MASK_WRITTEN)
def test_where_the_published_code_writes_the_mask_token(folder, case):
    """There the published run takes the mask token for text, so masks stay in its result.

    Ours never writes it. Up to the step where the published run first does, the canvases are the same; from there on
    the texts differ, but as many tokens are written in each step, and in the end no mask is left.
    """
    want, got = published(folder, case), history(sampler_of(folder, case), case, case["prompts"])
    assert len(got) == len(want)
    mask_token_id = denoiser(folder, bool(case["params"]["right_shift_logits"])).mask_token_id
    diverged = 0
    for row, length in enumerate(lengths_of(case)):
        ours, theirs = got[:, row, :length], want[:, row, :length]
        left, left_there = (ours == mask_token_id).sum(1), (theirs == mask_token_id).sum(1)  # (S,) each
        same = left == left_there
        until = len(same) if same.all() else int(same.long().argmin())
        assert torch.equal(ours[:until], theirs[:until])
        assert left[-1] == 0
        diverged += until < len(same)
    assert diverged > 0
    assert int((want[-1] == mask_token_id).sum()) == case["remaining_masks"]


@pytest.mark.parametrize(("folder", "case"), FILLER_SEEN)
def test_where_the_published_code_attends_to_filler(folder, case):
    """There the published model drops the attention mask, so rows with shorter prompts see filler; ours never do.

    The row with the longest prompt has no filler, and is the same.
    """
    got = history(sampler_of(folder, case), case, case["prompts"])
    lengths = lengths_of(case)
    assert min(lengths) < max(lengths)
    for row, length in enumerate(lengths):
        if length == max(lengths):
            assert torch.equal(got[:, row], published(folder, case)[:, row])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "confidence": "random"},
        {"temperature": 0.7, "top_p": 0.9, "guidance_scale": 0.5, "confidence": "entropy", "stochastic_quota": True},
    ],
)
def test_a_row_draws_alone_what_it_draws_in_any_batch(implementation, options):
    """Padding changes the shapes that attention computes in, but neither the noise nor the text."""
    special_ids = json.loads((GOLDENS / "mha" / "cases.json").read_text())["special_ids"]
    model = dllm.load(GOLDENS / "mha", special_ids=special_ids, attn_implementation=implementation)
    prompts = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7, 8]]
    sampler = dllm.MDLMSampler(model, max_new_tokens=24, block_size=8, steps=12, seed=3, **options)
    together = sampler.sample(prompts)
    for row, prompt in enumerate(prompts):
        alone = sampler.sample(prompt)
        assert torch.equal(alone.sequences[0], together.sequences[row, : len(prompt) + 24])
    turned = sampler.sample(prompts[::-1])
    assert torch.equal(turned.sequences.flip(0), together.sequences)
