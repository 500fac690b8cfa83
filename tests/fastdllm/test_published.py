"""Canvas after canvas against published Fast-dLLM runs on small models of random weights.

Of ZHZisZZ/dllm at ca17675, its FastdLLMLLaDASampler and FastdLLMDreamSampler (float32, CPU, greedy); the models are
those beside the tests of dllm-llada and dllm-dream. What does not agree is listed with its reason, and does differ.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from dllm_fastdllm import MDLMFastdLLMSampler
from safetensors.torch import load_file

import dllm_core as dllm

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


def written_by(sampler: MDLMFastdLLMSampler, prompts: list[list[int]], new: int) -> list[list[list[int]]]:
    state = sampler.start([list(prompt) for prompt in prompts])
    canvases = [state.input_ids.tolist()]
    while not state.finished:
        canvases.append(sampler.step(state).input_ids.tolist())
    return without_repeats(
        [[row[: len(prompt) + new] for row, prompt in zip(rows, prompts, strict=True)] for rows in canvases]
    )


@pytest.mark.parametrize(("model", "case"), RUNS, ids=[f"{model}/{case['id']}" for model, case in RUNS])
def test_every_canvas_is_the_published_one_or_differs_for_a_reason(model, case):
    options = dream_options(case) if model == "dream" else llada_options(case)
    sampler = MDLMFastdLLMSampler(denoiser(model, case["params"]["right_shift_logits"]), **options)
    got = written_by(sampler, case["prompts"], case["params"]["max_new_tokens"])
    agrees = got == canvases_of(case, model)
    assert agrees is (f"{model}/{case['id']}" not in DIFFER)
    assert not any(sampler.denoiser.mask_token_id in row for row in got[-1])


def test_the_figures_in_the_readme_are_these():
    assert len(RUNS) == 108
    reasons = list(DIFFER.values())
    assert [reasons.count(each) for each in (PADDING, MASKS, CAPPED, TIE)] == [13, 5, 3, 2]
