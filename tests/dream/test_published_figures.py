"""Dream's logits, losses and CART weights against the published code's figures.

Shapes: B batch, L length, V vocabulary.
"""

from __future__ import annotations

import re

import pytest
import torch

import dllm_core as dllm
from dllm_core.objectives.weighting import context_weights, get_weighting
from tests.dream.published import FOLDER, SCHEDULES, cases_of, denoiser, facts, tensor

LOGITS, LOSSES, WEIGHTS = cases_of("logits"), cases_of("mdlm_loss", "dream_loss"), cases_of("cart_weight")


def test_no_case_is_left_out():
    assert [len(cases) for cases in (LOGITS, LOSSES, WEIGHTS)] == [10, 22, 12]


def given(case: dict, name: str) -> torch.Tensor | None:
    return tensor(case, f"in.{name}")


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("case", LOGITS)
def test_logits(case, implementation):
    model, ids, mask = denoiser(False, implementation), given(case, "input_ids").long(), given(case, "attention_mask")
    if mask is not None and mask.dim() == 4:
        if implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)  # eager adds its mask
        got = model.model(input_ids=ids, attention_mask=mask).logits
    elif (places := given(case, "position_ids")) is not None:
        got = model.logits(ids, mask.bool(), position_ids=places.long())
    else:
        got = model.logits(ids, None if mask is None else mask.bool())
    want = tensor(case, "out.logits")  # (B, L, V)
    if case.get("compare_where") == "attention_mask":
        got, want = got[mask.bool()], want[mask.bool()]
    torch.testing.assert_close(got, want, **case["tolerance"])


def weighting_of(case: dict) -> str:
    """``cart[geo_p:0.1]`` is ``cart[p:0.1]`` here, and ``scheduler`` ``schedule``."""
    name = case["params"]["loss_weight_type"]
    return re.sub(r"^scheduler$", "schedule", name.replace("geo_p", "p"))


@pytest.mark.parametrize("case", LOSSES)
def test_loss_and_the_norm_of_its_gradient(case):
    params = case["params"]
    model = dllm.load(
        FOLDER,
        device="cpu",
        dtype="float32",
        special_ids=facts()["special_ids"],
        logits_are_shifted=params["right_shift_logits"],
    )
    objective = dllm.objective(
        "mdlm",
        schedule=SCHEDULES[params["scheduler"]],
        weighting=weighting_of(case),
        normalization=params["loss_norm_type"],
        time_epsilon=params["time_epsilon"],
    )
    batch = {name: given(case, name).long() for name in ("input_ids", "labels")}
    batch |= {name: given(case, f"preprocessed_{name}").long() for name in batch if _has(case, f"preprocessed_{name}")}
    if (mask := given(case, "attention_mask")) is not None:
        front = batch["input_ids"].shape[1] - mask.shape[1]  # a beginning of sequence was put in front
        batch["attention_mask"] = torch.cat([mask.new_ones(len(mask), front), mask], 1).bool()
    corruption = dllm.Corruption(
        input_ids=given(case, "noised_input_ids").long(),
        masked=given(case, "masked_mask").bool(),
        time=given(case, "t").float(),
    )
    model.model.train()
    loss = objective.loss(model, batch, corruption).loss
    loss.backward()
    norm = torch.stack([weight.grad.norm() for weight in model.model.parameters()]).norm()
    torch.testing.assert_close(loss.float(), tensor(case, "out.loss").float(), **case["tolerance"])
    torch.testing.assert_close(norm, tensor(case, "out.grad_norm").reshape(()), atol=1e-4, rtol=1e-3)


def _has(case: dict, name: str) -> bool:
    return given(case, name) is not None


@pytest.mark.parametrize("case", WEIGHTS)
def test_cart_weights(case):
    weights = context_weights(given(case, "masked_mask").bool(), case["params"]["p"])
    torch.testing.assert_close(weights, tensor(case, "out.weights"), **case["tolerance"])


def test_the_parameter_of_cart_is_by_default_the_published_one():
    """Dream's trainer takes geo_p 0.3 unless it is told otherwise."""
    masked = given(WEIGHTS[0].values[0], "masked_mask").bool()
    corruption = dllm.Corruption(input_ids=masked.long(), masked=masked, time=torch.ones(len(masked)))
    assert torch.equal(get_weighting("cart")(None, corruption), context_weights(masked, 0.3))
