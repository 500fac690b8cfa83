"""Converted models against published figures: logits, masked sampling and infilling canvas by canvas, likelihoods.

Figures of ZHZisZZ/dllm at ca17675 (float32, CPU, greedy).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dllm_core as dllm
from dllm_core.evaluation import is_greedy, masked_loglikelihood

GOLDENS = Path(__file__).parent / "goldens"
SCHEDULES = {"LinearAlphaScheduler": "linear", "CosineAlphaScheduler": "cosine"}
SAME_NAME = ("max_new_tokens", "block_size", "steps", "temperature")
RENAMED = {
    "cfg_scale": "guidance_scale",
    "cfg_keep_tokens": "guidance_keep_tokens",
    "suppress_tokens": "suppress_tokens",
    "begin_suppress_tokens": "suppress_confidence_tokens",
}
CASES = [
    (file.parent.name, case)
    for file in sorted(GOLDENS.glob("*/cases.json"))
    for case in json.loads(file.read_text())["cases"]
]
TIED = {("qwen2", "mdlm_infill_02"): 0}  # case -> the row whose first two columns have equal confidence


def cases(kind: str) -> list:
    return [pytest.param(folder, case, id=f"{folder}-{case['id']}") for folder, case in CASES if case["kind"] == kind]


def test_no_case_is_left_out():
    assert [len(cases(kind)) for kind in ("logits", "sampler", "mc_loglikelihood")] == [20, 40, 4]


@cache
def denoiser(folder: str, shifted: bool = False, implementation: str = "sdpa") -> dllm.Denoiser:
    special_ids = json.loads((GOLDENS / folder / "cases.json").read_text())["special_ids"]
    return dllm.load(
        GOLDENS / folder,
        device="cpu",
        dtype="float32",
        special_ids=special_ids,
        logits_are_shifted=shifted,
        attn_implementation=implementation,
    )


def tensors(folder: str, case: dict, side: str) -> dict[str, torch.Tensor]:
    prefix = f"{case['id']}.{side}."
    return {name.removeprefix(prefix): value for name, value in stored(folder).items() if name.startswith(prefix)}


@cache
def stored(folder: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / folder / "cases.safetensors")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("folder", "case"), cases("logits"))
@torch.no_grad()
def test_logits_are_the_published_ones(folder, case, implementation):
    given = tensors(folder, case, "in")
    mask = given.pop("attention_mask", None)
    has_pattern = mask is not None and mask.dim() == 4
    got = denoiser(folder, implementation=implementation).logits(
        given["input_ids"].long(),
        None if mask is None or has_pattern else mask.bool(),
        attention=mask if has_pattern else None,
        position_ids=given.get("position_ids"),
    )
    want = tensors(folder, case, "out")["logits"]
    if case.get("compare_where") == "attention_mask":
        got, want = got[mask.bool()], want[mask.bool()]
    torch.testing.assert_close(got, want, **case["tolerance"])


def canvases(folder: str, case: dict) -> torch.Tensor:
    """The canvases of our run, start canvas first. -> (S, B, L)"""
    params = case["params"]
    options = {name: params[name] for name in SAME_NAME if name in params}
    options |= {new: params[old] for old, new in RENAMED.items() if params.get(old)}
    assert params["remasking"] == "low_confidence"  # our default, like block_size=None for one block
    options |= {"schedule": SCHEDULES[case["scheduler"]], "stop_at_eos": False}
    sampler = dllm.sampler("mdlm", denoiser(folder, bool(params["right_shift_logits"])), **options)
    state = (sampler.start if case["method"] == "sample" else sampler.start_infill)(case["prompts"])
    found = [state.input_ids.clone()]
    while not state.finished:
        found.append(sampler.step(state).input_ids)
    return torch.stack(found)


@pytest.mark.parametrize(("folder", "case"), cases("sampler"))
def test_every_canvas_is_the_published_one(folder, case):
    want, got = tensors(folder, case, "out")["history"].long(), canvases(folder, case)
    assert len(got) == len(want)
    for row, prompt in enumerate(case["prompts"]):
        length = len(prompt) + case["params"].get("max_new_tokens", 0)
        ours, theirs = got[:, row, :length], want[:, row, :length]
        if TIED.get((folder, case["id"])) == row:
            check_tie(folder, ours, theirs)
        else:
            assert torch.equal(ours, theirs)


@torch.no_grad()
def check_tie(folder: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Where both of the first two tokens are masked, right-shifted logits score them from the same row, so they are
    equally sure, and which of them is written first is up to ``topk``. Up to there the canvases are the same."""
    step = int((ours != theirs).any(1).nonzero()[0])
    scores = denoiser(folder, shifted=True).logits(theirs[step - 1 : step])[0]
    assert torch.equal(scores[0], scores[1])
    mask_token_id = denoiser(folder).mask_token_id
    assert (theirs[step - 1, :2] == mask_token_id).all()
    differing = (ours[step] != theirs[step]).nonzero()[:, 0].tolist()
    assert differing == [0, 1]
    assert torch.equal((ours[step] == mask_token_id).sum(), (theirs[step] == mask_token_id).sum())


@pytest.mark.parametrize(("folder", "case"), cases("mc_loglikelihood"))
@torch.no_grad()
def test_published_draws_give_the_published_likelihood(folder, case):
    given, want = tensors(folder, case, "in"), tensors(folder, case, "out")
    noise = list(zip(given["noisy_batches"], given["p_mask"], strict=True))
    assert len(noise) * len(noise[0][0]) == case["params"]["mc_num"]
    each = [masked_loglikelihood(denoiser(folder), given["prefix"], given["target"], *batch) for batch in noise]
    torch.testing.assert_close(torch.stack(each).mean(), want["loglikelihood"], **case["tolerance"])
    for target in ("target", "greedy_target"):
        assert is_greedy(denoiser(folder), given["prefix"], given[target]) is bool(want[f"is_greedy_{target}"])
