"""The core's objective passes the suite with every weighting, normalization and schedule."""

from __future__ import annotations

import itertools
import unittest
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from dllm_core.conformance.objective import ObjectiveTests
from dllm_core.conformance.own import MDLMLoss
from dllm_core.conformance.suite import Suite
from dllm_core.errors import DataError
from dllm_core.noise import Corruption, apply_mask
from dllm_core.objectives import MDLMObjective
from dllm_core.objectives.base import maskable_positions


class TestMDLM(MDLMLoss):
    """As it is registered, with its defaults."""


COMBINATIONS = list(
    itertools.product(("schedule", "uniform"), ("token", "sequence", "batch"), ("linear", "cosine"), (1e-3, 0.2))
)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda values: "-".join(map(str, values)))
def test_every_combination_of_options_passes(combination: tuple[str, str, str, float]) -> None:
    weighting, normalization, schedule, epsilon = combination
    options = {
        "weighting": weighting, "normalization": normalization, "schedule": schedule, "time_epsilon": epsilon
    }  # fmt: skip
    attributes = {"component": "core/mdlm", "options": options}
    attributes["loss_is_bound"] = weighting == "schedule" and normalization != "sequence"
    suite = type("Combination", (ObjectiveTests,), attributes)
    skipped = run(suite)
    assert set(skipped) == (set() if attributes["loss_is_bound"] else {"test_the_loss_is_the_bound"})


def run(suite: type[Suite]) -> dict[str, str]:
    """Runs all checks; the reasons of those that were skipped."""
    skipped = {}
    for check in suite.checks():
        try:
            getattr(suite(), check)()
        except unittest.SkipTest as reason:
            skipped[check] = str(reason)
    return skipped


@dataclass(frozen=True, kw_only=True)
class OwnWeights(Corruption):
    """A corruption that holds more than the core's."""

    weight: Tensor = field(default_factory=lambda: torch.ones(0))


@dataclass(frozen=True, kw_only=True)
class Drawn(MDLMObjective):
    """Good, and unlike the core's: draws a weight for each row, keeps it in the corruption, refuses empty batches."""

    def corrupt(self, batch, denoiser, *, generator) -> OwnWeights:
        if not maskable_positions(batch).any():
            raise DataError("the batch holds no token to learn; drop rows whose labels are all -100")
        ids = batch["input_ids"]
        time = 0.5 + 0.5 * torch.rand(len(ids), generator=generator)
        masked = torch.rand(ids.shape, generator=generator) < 0.5
        drawn = apply_mask(ids, masked & maskable_positions(batch), denoiser.mask_token_id, time)
        weight = torch.rand(len(ids), generator=generator)
        return OwnWeights(input_ids=drawn.input_ids, masked=drawn.masked, time=time, weight=weight)

    def loss(self, denoiser, batch, corruption, *, normalizer=None):
        timed = replace(corruption, time=0.1 + corruption.weight)
        return super().loss(denoiser, batch, timed, normalizer=normalizer)


class TestDrawn(ObjectiveTests):
    """An objective that is no bound, hides otherwise, and whose corruption holds another field."""

    component = "good:drawn"
    hides_independently = False
    is_bound = False

    def load_component(self) -> type:
        return Drawn

    def hide(self, batch, masked, time, denoiser) -> OwnWeights:
        plain = super().hide(batch, masked, time, denoiser)
        return OwnWeights(input_ids=plain.input_ids, masked=masked, time=time, weight=torch.full_like(time, 0.3))


CAPABILITIES = (
    "masks_tokens",
    "hides_independently",
    "is_bound",
    "loss_is_bound",
    "one_forward",
    "scores_hidden_only",
    "supports_right_shift",
)


def test_whoever_declares_nothing_is_asked_less_and_told_why() -> None:
    attributes = {"component": "core/mdlm"} | dict.fromkeys(CAPABILITIES, False)
    modest = type("Modest", (ObjectiveTests,), attributes)
    skipped = run(modest)
    assert 0 < len(skipped) < len(modest.checks())
    for name in CAPABILITIES:
        gated = [check for check in modest.checks() if getattr(getattr(modest, check), "capability", None) == name]
        assert gated
        assert all(name in skipped[check] for check in gated)
