"""Canvas after canvas against published Fast-dLLM runs on small models of random weights.

Of ZHZisZZ/dllm at ca17675, its FastdLLMLLaDASampler and FastdLLMDreamSampler (float32, CPU, greedy); the models are
those beside the tests of dllm-llada and dllm-dream. What does not agree is listed with its reason, does differ, and the
reason is shown to be one, run by run: with the published defect built in, or at the step where the two part.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from dllm_fastdllm import MDLMFastdLLMSampler, Threshold
from dllm_fastdllm.rules.prefix import surest_first
from safetensors.torch import load_file

import dllm_core as dllm
from dllm_core.noise.schedules import get_schedule

TESTS = Path(__file__).parents[1]
MODELS = {"mha": TESTS / "llada/goldens/mha", "gqa": TESTS / "llada/goldens/gqa", "dream": TESTS / "dream/goldens"}
SCHEDULES = {"LinearAlphaScheduler": "linear", "CosineAlphaScheduler": "cosine"}
CONFIDENCES = {"topk_margin": "margin", "entropy": "entropy"}

PADDING = "the published model drops the attention mask: rows of unequal prompts see padding"
MASKS = "the published loop stops after the planned steps and leaves masks"
TIE = "two positions are equally sure; torch.topk takes any, here the left one is written"
CAPPED = "without a cache the published threshold writes no more than the schedule plans"
DIFFER = {
    **{f"mha/fastdllm_llada_none_{n:02}": PADDING for n in (1, 3, 5, 8, 9, 11)},
    **{f"gqa/fastdllm_llada_none_{n:02}": PADDING for n in (0, 2, 6, 8, 9, 10, 11)},
    **{f"mha/fastdllm_llada_dual_{n:02}": MASKS for n in (6, 8)},
    **{f"gqa/fastdllm_llada_dual_{n:02}": MASKS for n in (1, 3, 7)},
    **{f"dream/fastdllm_dream_none_{n:02}": CAPPED for n in (6, 10, 11)},
    "gqa/fastdllm_llada_prefix_06": TIE,
    "dream/fastdllm_dream_none_02": TIE,
}


@cache
def facts(model: str) -> dict:
    return json.loads((MODELS[model] / "cases.json").read_text(encoding="utf-8"))


@cache
def denoiser(model: str, shifted: bool) -> dllm.Denoiser:
    ids = facts(model)["special_ids"]
    return dllm.load(MODELS[model], device="cpu", dtype="float32", special_ids=ids, logits_are_shifted=shifted)


def llada_runs(model: str) -> list[dict]:
    return [case for case in facts(model)["cases"] if case["id"].startswith("fastdllm")]


def dream_runs() -> list[dict]:
    return json.loads((Path(__file__).parent / "published_dream.json").read_text(encoding="utf-8"))


RUNS = [(model, case) for model in ("mha", "gqa") for case in llada_runs(model)] + [
    ("dream", case) for case in dream_runs()
]


def shared_options(case: dict) -> dict:
    """Options that both published samplers have, under our names, and the defaults of theirs."""
    params = case["params"]
    options = {name: params[name] for name in ("max_new_tokens", "block_size", "steps")}
    rule = next((name for name in ("factor", "threshold") if params.get(name) is not None), "quota")
    options |= {"commit": rule, "cache": params.get("use_cache") or "none"}
    options |= {} if rule == "quota" else {rule: params[rule]}
    return options | {"schedule": SCHEDULES[case["scheduler"]], "suffix_window": None, "stop_at_eos": False}


def llada_options(case: dict) -> dict:
    params = case["params"]
    suppressed = [*(params["suppress_tokens"] or ()), *(params["begin_suppress_tokens"] or ())]
    borrows = {"borrow_lead": True} if params["use_cache"] and params["right_shift_logits"] else {}
    return {**shared_options(case), "suppress_tokens": suppressed, **borrows}


def dream_options(case: dict) -> dict:
    params = case["params"]
    options = shared_options(case) | {"confidence": CONFIDENCES.get(params["alg"], "probability")}
    options |= {name: params[name] for name in ("top_k", "top_p") if name in params}
    if not params.get("use_cache"):
        return options | {"block_size": None}
    return options | {"forced_commit": True, "quota": "floor", "time_epsilon": 1e-3}


def canvases_of(case: dict, model: str) -> list[list[list[int]]]:
    """The published canvases that differ from the one before, without padding."""
    new = case["params"]["max_new_tokens"]
    if model == "dream":
        mask = facts(model)["special_ids"]["mask"]
        canvases = [[[*prompt, *[mask] * new] for prompt in case["prompts"]]]
        for step in case["writes"]:
            canvases.append([list(row) for row in canvases[-1]])
            for row, prompt, writes in zip(canvases[-1], case["prompts"], step, strict=True):
                for position, token in writes:
                    row[len(prompt) + position] = token
        return canvases
    history = stored(model)[f"{case['id']}.out.history"].tolist()
    return without_repeats(
        [[row[: len(prompt) + new] for row, prompt in zip(rows, case["prompts"], strict=True)] for rows in history]
    )


@cache
def stored(model: str) -> dict:
    return load_file(MODELS[model] / "cases.safetensors")


def without_repeats(canvases: list) -> list:
    """Steps that write nothing are left out here."""
    return [canvas for number, canvas in enumerate(canvases) if number == 0 or canvas != canvases[number - 1]]


def sampler_of(model: str, case: dict) -> MDLMFastdLLMSampler:
    options = dream_options(case) if model == "dream" else llada_options(case)
    return MDLMFastdLLMSampler(denoiser(model, case["params"]["right_shift_logits"]), **options)


def run_by(sampler: MDLMFastdLLMSampler, case: dict) -> tuple[list[list[list[int]]], list[torch.Tensor]]:
    """The canvases, without padding, and the confidences (B, L) that each step saw."""
    prompts, new = case["prompts"], case["params"]["max_new_tokens"]
    state = sampler.start([list(prompt) for prompt in prompts])
    canvases, sure = [state.input_ids.tolist()], []
    while not state.finished:
        step = sampler.step(state)
        canvases.append(step.input_ids.tolist())
        sure.append(step.confidence)
    return [[row[: len(prompt) + new] for row, prompt in zip(rows, prompts, strict=True)] for rows in canvases], sure


def written_by(sampler: MDLMFastdLLMSampler, case: dict) -> list[list[list[int]]]:
    return without_repeats(run_by(sampler, case)[0])


@pytest.mark.parametrize(("model", "case"), RUNS, ids=[f"{model}/{case['id']}" for model, case in RUNS])
def test_every_canvas_is_the_published_one_or_differs_for_a_reason(model, case):
    sampler = sampler_of(model, case)
    got = written_by(sampler, case)
    agrees = got == canvases_of(case, model)
    assert agrees is (f"{model}/{case['id']}" not in DIFFER)
    assert not any(sampler.denoiser.mask_token_id in row for row in got[-1])


def for_the_reason(reason: str):
    """The runs that differ for it."""
    told = [(f"{model}/{case['id']}", model, case) for model, case in RUNS]
    found = [(model, case) for name, model, case in told if DIFFER.get(name) == reason]
    return pytest.mark.parametrize(("model", "case"), found, ids=[f"{m}/{case['id']}" for m, case in found])


@for_the_reason(PADDING)
def test_without_an_attention_mask_the_canvases_are_the_published_ones(model, case, monkeypatch):
    sampler = sampler_of(model, case)
    ask = sampler.denoiser.logits
    monkeypatch.setattr(sampler.denoiser, "logits", lambda ids, mask=None, **rest: ask(ids, None, **rest))
    assert written_by(sampler, case) == canvases_of(case, model)


@for_the_reason(MASKS)
def test_up_to_where_the_published_run_leaves_a_mask_the_canvases_are_the_published_ones(model, case):
    got, want = written_by(sampler_of(model, case), case), canvases_of(case, model)
    mask, size = facts(model)["special_ids"]["mask"], case["params"]["block_size"]
    assert any(mask in row for row in want[-1])
    parted = next((number for number, pair in enumerate(zip(got, want, strict=False)) if pair[0] != pair[1]), None)
    if parted is None:  # in its only block it just ends
        assert want == got[: len(want)]
        return

    def blocks(number: int) -> set[int]:
        """Which blocks the step to that canvas of the published run wrote in."""
        places = zip(want[number - 1], want[number], case["prompts"], strict=True)
        return {
            (at - len(prompt)) // size
            for before, after, prompt in places
            for at, (old, new) in enumerate(zip(before, after, strict=True))
            if old != new
        }

    (now,), (before,) = blocks(parted), blocks(parted - 1)
    assert now == before + 1  # it goes on, and behind it stands a mask
    assert any(
        mask in row[len(prompt) + before * size : len(prompt) + now * size]
        for row, prompt in zip(want[parted], case["prompts"], strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class Capped(Threshold):
    """Of what passes, no more than the schedule reveals of the masks that are left, from time t to the next one s."""

    needs: ClassVar[tuple[str, ...]] = ("history",)
    steps: int
    schedule: str

    def remember(self, size):
        return torch.zeros(1, dtype=torch.int64)  # steps taken

    def select(self, proposal, masked, quota):
        step, left = int(proposal.history), int(masked.sum())
        proposal.history.add_(1)
        t, s = (1 - at / self.steps for at in (step, step + 1))
        cap = round(left * (1 - get_schedule(self.schedule).reverse_mask_prob(s, t)))
        _, order = surest_first(proposal.confidence, masked)
        first = torch.zeros_like(masked).scatter(1, order[:, :cap], True)
        return super().select(proposal, masked, quota) & first


@for_the_reason(CAPPED)
def test_with_a_threshold_that_waits_for_the_schedule_the_canvases_are_the_published_ones(model, case):
    sampler = sampler_of(model, case)
    sampler.rule = Capped(
        threshold=case["params"]["threshold"], steps=case["params"]["steps"], schedule=SCHEDULES[case["scheduler"]]
    )
    assert written_by(sampler, case) == canvases_of(case, model)


@for_the_reason(TIE)
def test_where_the_runs_part_two_positions_are_equally_sure(model, case):
    got, sure = run_by(sampler_of(model, case), case)
    want = canvases_of(case, model)
    parted = next(number for number, pair in enumerate(zip(got, want, strict=False)) if pair[0] != pair[1])
    for row, (ours, theirs) in enumerate(zip(got[parted], want[parted], strict=True)):
        (left, right) = [at for at in range(len(ours)) if ours[at] != theirs[at]] or (0, 0)
        if left != right:
            assert ours[left] != got[parted - 1][row][left] == theirs[left]  # here the left one is written
            confidence = sure[parted - 1][row]
            torch.testing.assert_close(confidence[left], confidence[right], rtol=1e-6, atol=0)


def test_the_figures_in_the_readme_are_these():
    assert len(RUNS) == 108
    reasons = list(DIFFER.values())
    assert [reasons.count(each) for each in (PADDING, MASKS, CAPPED, TIE)] == [13, 5, 3, 2]
