"""The published figures beside these tests: tiny random Dream models, what went in and what came out.

Of ZHZisZZ/dllm at ca17675 (float32, CPU, greedy); where it drew random numbers, the draws are part of the case.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dllm_core as dllm

FOLDER = Path(__file__).parent / "goldens"
SCHEDULES = {"LinearAlphaScheduler": "linear", "CosineAlphaScheduler": "cosine"}
# The published names and ours; README.md of the plugin has the same table.
ALGORITHMS = {
    "maskgit_plus": "dream",
    "topk_margin": "topk_margin",
    "entropy": "entropy",
    "confidence_threshold": "dream",
}
RENAMED = {
    "cfg_scale": "guidance_scale",
    "cfg_keep_tokens": "guidance_keep_tokens",
    "begin_suppress_tokens": "suppress_confidence_tokens",
}
SAME_NAME = ("max_new_tokens", "steps", "temperature", "top_k", "suppress_tokens")
NEW_TOKENS = 20  # the published default, where a case names none


@cache
def facts() -> dict:
    return json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))


@cache
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "cases.safetensors")


def tensor(case: dict, name: str) -> torch.Tensor | None:
    return tensors().get(f"{case['id']}.{name}")


def cases_of(*kinds: str) -> list:
    return [pytest.param(case, id=case["id"]) for case in facts()["cases"] if case["kind"] in kinds]


@cache
def denoiser(shifted: bool = True, implementation: str | None = None) -> dllm.Denoiser:
    return dllm.load(
        FOLDER,
        device="cpu",
        dtype="float32",
        special_ids=facts()["special_ids"],
        logits_are_shifted=shifted,
        attn_implementation=implementation,
    )


def options_of(case: dict) -> dict[str, object]:
    """A case's parameters in our names; a published None or 1.0 of top_p is no nucleus."""
    params = case["params"]
    options = {name: params[name] for name in SAME_NAME if params.get(name) is not None}
    options |= {new: params[old] for old, new in RENAMED.items() if params.get(old)}
    options |= {"top_p": None if params.get("top_p") in (None, 1.0) else params["top_p"]}
    options |= {"schedule": SCHEDULES[case["scheduler"]], "stop_at_eos": False}
    return options | ({"block_size": params["block_size"]} if case["sampler"] == "MDLMSampler" else {})


def sampler_of(case: dict, **changes: object) -> dllm.MDLMSampler:
    name = "mdlm" if case["sampler"] == "MDLMSampler" else f"dream/{ALGORITHMS[case['params']['alg']]}"
    model = denoiser(bool(case["params"]["right_shift_logits"]))
    return dllm.sampler(name, model, **{**options_of(case), **changes})


def canvases_of(case: dict) -> list[list[int]] | None:
    """The texts to fill; None where the case completes prompts.

    Some published runs complete prompts that hold masks, and fill those with the rest; here that is infilling.
    """
    mask = facts()["special_ids"]["mask"]
    if not any(mask in prompt for prompt in case["prompts"]):
        return None
    new = 0 if case["method"] == "infill" else case["params"].get("max_new_tokens", NEW_TOKENS)
    return [prompt + [mask] * new for prompt in case["prompts"]]


def lengths_of(case: dict) -> list[int]:
    canvases = canvases_of(case)
    if canvases is not None:
        return [len(row) for row in canvases]
    return [len(prompt) + case["params"]["max_new_tokens"] for prompt in case["prompts"]]


def published_rows(case: dict) -> list[torch.Tensor]:
    """The canvases (S, L) of each row, start canvas first; Dream's own code pads on the left."""
    history = tensor(case, "out.history").long()
    if case["sampler"] == "MDLMSampler":
        return [history[:, row, :length] for row, length in enumerate(lengths_of(case))]
    return [history[:, row, -length:] for row, length in enumerate(lengths_of(case))]


def our_rows(sampler: dllm.MDLMSampler, case: dict, rows: list[int] | None = None) -> list[torch.Tensor]:
    """The same of a run of ours, over some of the rows."""
    rows = list(range(len(case["prompts"]))) if rows is None else rows
    canvases = canvases_of(case)
    start, texts = (sampler.start, case["prompts"]) if canvases is None else (sampler.start_infill, canvases)
    state = start([texts[row] for row in rows])
    history = [state.input_ids.clone()]
    while not state.finished:
        history.append(sampler.step(state).input_ids.clone())
    lengths = lengths_of(case)
    return [torch.stack(history)[:, place, : lengths[row]] for place, row in enumerate(rows)]
