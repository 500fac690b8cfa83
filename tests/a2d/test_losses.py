"""Losses on converted models against the published trainers: loss, and the gradient of every parameter.

Figures of ZHZisZZ/dllm at ca17675 (float32, CPU); where it drew random numbers, the draws are part of the case.
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
WEIGHTINGS = {"scheduler": "schedule", "uniform": "uniform"}
CASES = [
    pytest.param(file.parent.name, case, id=f"{file.parent.name}-{case['id']}")
    for file in sorted(GOLDENS.glob("*/loss_cases.json"))
    for case in json.loads(file.read_text())["cases"]
]


@cache
def tensors(folder: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / folder / "loss_cases.safetensors")


def test_no_case_is_left_out():
    kinds = [case.values[1]["kind"] for case in CASES]
    assert (kinds.count("bd3lm_loss"), kinds.count("mdlm_loss")) == (54, 16)


def objective_of(case: dict) -> dllm.Objective:
    params = case["params"]
    blocks = {"block_size": params["block_size"]} if "block_size" in params else {}
    return dllm.objective(
        case["kind"].removesuffix("_loss"),
        schedule=SCHEDULES[params["scheduler"]],
        weighting=WEIGHTINGS[params["loss_weight_type"]],
        normalization=params["loss_norm_type"],
        time_epsilon=params["time_epsilon"],
        **blocks,
    )


def batch_of(folder: str, case: dict) -> tuple[dict[str, torch.Tensor], dllm.Corruption]:
    given = {name: tensors(folder).get(f"{case['id']}.in.{name}") for name in case["inputs"]}
    ids = given.get("preprocessed_input_ids")
    front = given["input_ids"] if ids is None else ids
    labels = given["labels"] if ids is None else given["preprocessed_labels"]
    batch = {"input_ids": front.long(), "labels": labels.long()}
    if given.get("attention_mask") is not None:
        mask = given["attention_mask"].bool()
        grown = mask.new_ones(len(mask), front.shape[1] - mask.shape[1])  # a beginning of text was put in front
        batch["attention_mask"] = torch.cat([grown, mask], 1)
    time = given["t"].float()
    noised = given["noised_input_ids"].long()
    return batch, dllm.Corruption(input_ids=noised, masked=given["masked_mask"].bool(), time=time)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("folder", "case"), CASES)
def test_loss_and_gradients(folder, case, implementation):
    special_ids = json.loads((GOLDENS / folder / "loss_cases.json").read_text())["special_ids"]
    denoiser = dllm.load(
        GOLDENS / folder,
        device="cpu",
        dtype="float32",
        special_ids=special_ids,
        logits_are_shifted=case["params"]["right_shift_logits"],
        attn_implementation=implementation,
    )
    denoiser.model.train()
    batch, corruption = batch_of(folder, case)
    output = objective_of(case).loss(denoiser, batch, corruption)
    want = tensors(folder)
    torch.testing.assert_close(output.loss, want[f"{case['id']}.out.loss"].reshape(()), **case["tolerance"])
    output.loss.backward()
    norms = {name: p.grad.norm() for name, p in denoiser.model.named_parameters() if p.grad is not None}
    got = torch.stack([norms.get(name, torch.zeros(())) for name in case["grad_names"]])
    torch.testing.assert_close(got, want[f"{case['id']}.out.grad_norm_each"], atol=1e-5, rtol=1e-3)
