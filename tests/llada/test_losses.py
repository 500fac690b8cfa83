"""The masked diffusion loss on LLaDA models against the published trainer: loss, and the gradient of every parameter.

Figures of ZHZisZZ/dllm at ca17675 (float32, CPU); where it drew random numbers, the draws are part of the case.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dllm_core as dllm
from dllm_core.noise import apply_mask, get_schedule, masked_where
from dllm_core.objectives.base import maskable_positions

GOLDENS = Path(__file__).parent / "goldens"
SCHEDULES = {"LinearAlphaScheduler": "linear", "CosineAlphaScheduler": "cosine"}
WEIGHTINGS = {"scheduler": "schedule", "uniform": "uniform"}


def read_cases(folder: Path) -> list[dict]:
    return [case for case in json.loads((folder / "cases.json").read_text())["cases"] if case["kind"] == "mdlm_loss"]


FOLDERS = sorted(file.parent for file in GOLDENS.glob("*/cases.json"))
CASES = [
    pytest.param(folder, case, id=f"{folder.name}-{case['id']}") for folder in FOLDERS for case in read_cases(folder)
]


def test_there_are_cases():
    assert len(CASES) == 16


@pytest.fixture(scope="module")
def tensors():
    return {folder: load_file(folder / "cases.safetensors") for folder in FOLDERS}


def batch_of(case: dict, store: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the model saw: after a beginning of text was put in front, where the case says so."""
    given = {name: store[f"{case['id']}.in.{name}"] for name in case["inputs"]}
    batch = {name: given.get(f"preprocessed_{name}", given[name]).long() for name in ("input_ids", "labels")}
    if "attention_mask" in given:
        mask = given["attention_mask"].bool()
        front = mask.new_ones(len(mask), batch["input_ids"].shape[1] - mask.shape[1])
        batch["attention_mask"] = torch.cat([front, mask], 1)
    return batch


def objective_of(case: dict):
    params = case["params"]
    return dllm.objective(
        "mdlm",
        schedule=SCHEDULES[params["scheduler"]],
        weighting=WEIGHTINGS[params["loss_weight_type"]],
        normalization=params["loss_norm_type"],
        time_epsilon=params["time_epsilon"],
    )


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_loss_and_gradients(folder, case, tensors):
    store = tensors[folder]
    want = {name: store[f"{case['id']}.out.{name}"] for name in case["outputs"]}
    special_ids = json.loads((folder / "cases.json").read_text())["special_ids"]
    denoiser = dllm.load(
        folder,
        device="cpu",
        dtype="float32",
        special_ids=special_ids,
        logits_are_shifted=case["params"]["right_shift_logits"],
    )
    denoiser.model.train()
    corruption = dllm.Corruption(
        input_ids=store[f"{case['id']}.in.noised_input_ids"].long(),
        masked=store[f"{case['id']}.in.masked_mask"].bool(),
        time=store[f"{case['id']}.in.t"],
    )
    output = objective_of(case).loss(denoiser, batch_of(case, store), corruption)
    torch.testing.assert_close(output.loss.detach(), want["loss"].reshape(()), **case["tolerance"])
    output.loss.backward()
    gradients = {name: value.grad for name, value in denoiser.model.named_parameters() if value.grad is not None}
    assert set(gradients) == set(case["grad_names"])
    norms = torch.stack([gradients[name].norm() for name in case["grad_names"]])
    torch.testing.assert_close(norms, want["grad_norm_each"], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(norms.norm(), want["grad_norm"].reshape(()), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_draws_lead_to_the_same_corruption(folder, case, tensors):
    """The published uniform draws, through our time and masking rule, hide the same tokens."""
    given = {name: tensors[folder][f"{case['id']}.in.{name}"] for name in case["inputs"]}
    batch, epsilon = batch_of(case, tensors[folder]), case["params"]["time_epsilon"]
    time = epsilon + (1 - epsilon) * given["u_time"]
    torch.testing.assert_close(time, given["t"])
    schedule = get_schedule(SCHEDULES[case["params"]["scheduler"]])
    masked = masked_where(given["u_mask"], time, schedule) & maskable_positions(batch)
    assert torch.equal(masked, given["masked_mask"].bool())
    mask_token_id = json.loads((folder / "cases.json").read_text())["special_ids"]["mask"]
    assert torch.equal(apply_mask(batch["input_ids"], masked, mask_token_id, time).input_ids, given["noised_input_ids"])
