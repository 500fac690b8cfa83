"""Published figures of BERT and ModernBERT on tiny random checkpoints, and our run of each case.

Figures of ZHZisZZ/dllm at ca17675 and transformers 4.57 (float32, CPU, greedy).
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
RENAMED = {
    "cfg_scale": "guidance_scale",
    "suppress_tokens": "suppress_tokens",
    "begin_suppress_tokens": "suppress_confidence_tokens",
}


@cache
def facts(folder: str) -> dict:
    return json.loads((GOLDENS / folder / "cases.json").read_text())


@cache
def stored(folder: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / folder / "cases.safetensors")


def cases(kind: str) -> list:
    return [
        pytest.param(folder, case, id=f"{folder}-{case['id']}")
        for folder in ("bert", "modernbert")
        for case in facts(folder)["cases"]
        if case["kind"] == kind
    ]


def tensor(folder: str, case: dict, name: str) -> torch.Tensor | None:
    return stored(folder).get(f"{case['id']}.{name}")


@cache
def denoiser(folder: str, implementation: str = "sdpa", *, shifted: bool = False) -> dllm.Denoiser:
    return dllm.load(
        GOLDENS / folder,
        device="cpu",
        dtype="float32",
        special_ids=facts(folder)["special_ids"],
        attn_implementation=implementation,
        logits_are_shifted=shifted,
    )


def canvases(folder: str, case: dict, prompts: list) -> torch.Tensor:
    """The canvases of our run, start canvas first. -> (S, B, L)"""
    params = case["params"]
    options = {name: params[name] for name in ("max_new_tokens", "block_size", "steps") if name in params}
    options |= {new: params[old] for old, new in RENAMED.items() if params.get(old)}
    options |= {"schedule": SCHEDULES[case["scheduler"]], "stop_at_eos": False}
    sampler = dllm.sampler("mdlm", denoiser(folder, shifted=params["right_shift_logits"]), **options)
    state = (sampler.start if case["method"] == "sample" else sampler.start_infill)(prompts)
    found = [state.input_ids.clone()]
    while not state.finished:
        found.append(sampler.step(state).input_ids)
    return torch.stack(found)
