"""Block diffusion on converted models against published runs: every canvas of every run, token by token.

Figures of ZHZisZZ/dllm at ca17675 (float32, CPU, greedy), whose canvases are padded on the left to whole blocks and
grow by a block at a time; ours have all masks from the start. A row may not depend on the batch, nor on the cache.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dllm_core as dllm

GOLDENS = Path(__file__).parent / "goldens"
SCHEDULES = {"LinearAlphaScheduler": "linear", "CosineAlphaScheduler": "cosine"}
RENAMED = {"cfg_scale": "guidance_scale", "cfg_keep_tokens": "guidance_keep_tokens"}
CASES = [
    pytest.param(file.parent.name, case, id=f"{file.parent.name}-{case['id']}")
    for file in sorted(GOLDENS.glob("*/block_cases.json"))
    for case in json.loads(file.read_text())["cases"]
]


def test_no_case_is_left_out():
    assert len(CASES) == 48


@cache
def denoiser(folder: str, shifted: bool) -> dllm.Denoiser:
    special_ids = json.loads((GOLDENS / folder / "block_cases.json").read_text())["special_ids"]
    return dllm.load(
        GOLDENS / folder, device="cpu", dtype="float32", special_ids=special_ids, logits_are_shifted=shifted
    )


@cache
def tensors(folder: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / folder / "block_cases.safetensors")


def sampler_of(folder: str, case: dict, **changes: object) -> dllm.BD3LMSampler:
    params = case["params"]
    options = {name: params[name] for name in ("max_new_tokens", "block_size", "temperature")}
    per_block = params.get("steps_per_block")
    options |= {"steps": params["steps"]} if per_block is None else {"steps_per_block": per_block}
    options |= {new: params[old] for old, new in RENAMED.items() if params.get(old)}
    assert params["remasking"] == "low_confidence"  # our default
    options |= {"schedule": SCHEDULES[case["scheduler"]], "block_grid": "completion"} | changes
    return dllm.sampler("bd3lm", denoiser(folder, params["right_shift_logits"]), **options)


def published(folder: str, case: dict, row: int) -> list[list[int]]:
    """A row's canvases, start canvas first, from its prompt to where the canvas ended then."""
    history = tensors(folder)[f"{case['id']}.history"]  # (S, B, Tmax)
    stops = tensors(folder)[f"{case['id']}.history_len"].tolist()
    size = case["params"]["block_size"]
    prompts = -(-max(map(len, case["prompts"])) // size) * size  # columns of the prompts, whole blocks
    start = prompts - len(case["prompts"][row])
    return [canvas[start:stop].tolist() for canvas, stop in zip(history[:, row], stops, strict=True)]


def canvases(sampler: dllm.BD3LMSampler, prompts: list[list[int]]) -> torch.Tensor:
    """Our canvases, start canvas first. -> (S, B, L)"""
    state = sampler.start(prompts)
    found = [state.input_ids.clone()]
    while not state.finished:
        found.append(sampler.step(state).input_ids)
    return torch.stack(found)


@pytest.mark.parametrize("policy", ["block", "none"])
@pytest.mark.parametrize(("folder", "case"), CASES)
def test_every_canvas_is_the_published_one(folder, case, policy):
    """Published runs go on until every row has an end of sequence, so ours stop at none; the one that does so early is
    compared as far as it goes."""
    got = canvases(sampler_of(folder, case, stop_at_eos=False, cache=policy), case["prompts"])
    for row in range(len(case["prompts"])):
        want = published(folder, case, row)
        assert len(want) == len(got) or ends_early(folder, case)
        for ours, theirs in zip(got[:, row].tolist(), want, strict=False):
            assert ours[: len(theirs)] == theirs


def ends_early(folder: str, case: dict) -> bool:
    """Whether the published run stopped in front of its last block, as every row held an end of sequence."""
    eos = denoiser(folder, shifted=False).eos_token_id
    rows = [published(folder, case, row)[-1][len(prompt) :] for row, prompt in enumerate(case["prompts"])]
    return all(eos in row and len(row) < case["params"]["max_new_tokens"] for row in rows)


def test_one_published_run_ends_early_and_ours_then_ends_with_it():
    early = [param.values for param in CASES if ends_early(*param.values)]
    assert [(folder, case["id"]) for folder, case in early] == [("qwen2", "bd3lm_08")]
    for folder, case in early:
        got = canvases(sampler_of(folder, case), case["prompts"])
        want = published(folder, case, 0)
        assert len(got) == len(want)
        assert all(ours[: len(theirs)] == theirs for ours, theirs in zip(got[:, 0].tolist(), want, strict=True))


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_a_row_alone_passes_through_the_same_canvases(folder, case):
    sampler = sampler_of(folder, case, stop_at_eos=False)
    for row, prompt in enumerate(case["prompts"]):
        got = canvases(sampler, [prompt])[:, 0].tolist()
        want = published(folder, case, row)
        assert len(want) <= len(got)
        assert all(ours[: len(theirs)] == theirs for ours, theirs in zip(got, want, strict=False))


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_fewer_passes_are_taken_and_fewer_positions_computed(folder, case):
    """The published sampler encodes all of the prefix anew for each block, in a pass of its own, and guided steps take
    two passes where ours has both halves in one."""
    if ends_early(folder, case):
        pytest.skip("the published run computes fewer blocks")
    stats = sampler_of(folder, case, stop_at_eos=False).sample(case["prompts"]).stats
    assert stats.forward_passes < case["nfe"]
    assert stats.positions_processed < case["forward_tokens"]


@pytest.mark.slow  # torch compiles a kernel for each shape
@pytest.mark.parametrize("policy", ["block", "none"])
def test_flex_attention_writes_the_same(policy):
    """Flex attention takes no dense mask: it ignores one, or on the CPU ends the process."""
    special_ids = json.loads((GOLDENS / "qwen3" / "block_cases.json").read_text())["special_ids"]
    flex = dllm.load(
        GOLDENS / "qwen3", dtype="float32", special_ids=special_ids, attn_implementation="flex_attention", device="cpu"
    )
    # Blocks of 5: of 8 keys torch 2.13 computes another attention on a CPU whose vectors hold 8 numbers.
    options = {"max_new_tokens": 12, "block_size": 5, "cache": policy}
    want, got = (
        dllm.BD3LMSampler(each, **options).sample([[1, 2, 3], [4]]) for each in (denoiser("qwen3", False), flex)
    )
    assert torch.equal(got.sequences, want.sequences)
