"""The core's sampler, commit rule and cache policy pass the suite, and so do good ones that are made differently."""

from __future__ import annotations

import unittest
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch

from dllm_core.conformance.cache_policy import CachePolicyTests
from dllm_core.conformance.chi_square import expect_fit
from dllm_core.conformance.commit_rule import CommitRuleTests
from dllm_core.conformance.expect import expect_close, expect_equal, expect_refused
from dllm_core.conformance.own import BD3LMSampling, FinishedBlocksPolicy, MDLMSampling, NoCachePolicy, QuotaRule
from dllm_core.conformance.sampler import SamplerTests
from dllm_core.conformance.sampler_suite import PROMPTS, fresh
from dllm_core.conformance.suite import Suite
from dllm_core.errors import OptionError
from dllm_core.samplers import MDLMSampler, NoCache, SamplerState
from dllm_core.samplers.state import Block
from tests.conformance.mutants.cache_policy import WINDOW, Window
from tests.conformance.mutants.commit_rule import THRESHOLD, Threshold


class TestMDLM(MDLMSampling):
    """The core's sampler."""


class TestBD3LM(BD3LMSampling):
    """The core's block sampler."""


class TestBD3LMFromTheCompletion(BD3LMSampling):
    """The same on the other grid, and without a cache."""

    options: ClassVar[dict] = {"block_grid": "completion", "cache": "none"}


class TestQuota(QuotaRule):
    """The core's commit rule."""


class TestNoCache(NoCachePolicy):
    """The core's cache policy."""


class TestFinishedBlocks(FinishedBlocksPolicy):
    """The core's cache."""


class TestThreshold(CommitRuleTests):
    """A rule that sets its own pace."""

    component = "good:threshold"
    bad_options = THRESHOLD["bad_options"]
    monotone_in = THRESHOLD["monotone_in"]
    equivalent_to = THRESHOLD["equivalent_to"]

    def load_component(self) -> type:
        return Threshold


class TestWindow(CachePolicyTests):
    """A policy that computes less than the canvas."""

    component = "good:window"
    exact = True
    bad_options = WINDOW["bad_options"]
    refresh_options = WINDOW["refresh_options"]

    def load_component(self) -> type:
        return Window

    def test_it_computes_less(self) -> None:
        """The twin is what it says, so the suite has met a policy of this kind."""
        few, all_of_them = (self.sampler(part, block_size=1).sample([1]).stats for part in (Window(), NoCache()))
        assert few.positions_processed == 2 + 3 + 4 + 5
        assert all_of_them.positions_processed == 4 * 5


@dataclass(kw_only=True)
class RemaskingBlock(Block):
    """A block with a plan: where ``again`` (R, S - 1) is set, one token is masked again after that step."""

    again: torch.Tensor


class Remasking(MDLMSampler):
    """Masks one of a block's tokens again after a step, drawn at random, and writes one more in the next step."""

    def open_block(self, state: SamplerState) -> Block | None:
        block = super().open_block(state)
        if block is None:
            return None
        before = block.quota.cumsum(1) - block.quota  # (R, S) tokens written before each step
        again = (before > 1)[:, :-1] & (block.quota[:, 1:] > 0)
        plan = {field.name: getattr(block, field.name) for field in fields(block)}
        plan["quota"] = block.quota + torch.nn.functional.pad(again.long(), (1, 0))
        plan["open_counts"] = [block.open_counts[0], *(count + 1 for count in block.open_counts[1:])]
        return RemaskingBlock(**plan, again=again)

    def revise(self, state: SamplerState, ids: torch.Tensor) -> torch.Tensor:
        block, mask = state.block, self.denoiser.mask_token_id
        if block.step == block.again.shape[1]:
            return ids
        rows, positions = block.rows, block.positions  # (R,), (R, K)
        start = state.canvas.tensor(self.denoiser.pad_token_id, ids.device)[rows].gather(1, positions)
        there = state.input_ids[rows].gather(1, positions)
        written = (start == mask) & (there != mask) & block.valid
        choice = self.noise(state, 16, positions).masked_fill(~written, -1).argmax(1, keepdim=True)
        position = positions.gather(1, choice)  # (R, 1)
        again = block.again[:, block.step, None]
        return ids.scatter(1, position, torch.where(again, mask, ids.gather(1, position)))


class TestRemasking(SamplerTests):
    """Masks again what it has written, at random places."""

    component = "good:remasking"
    may_remask = True
    follows_schedule = False
    deterministic_at_zero = False
    ranks_by_confidence = False

    def load_component(self) -> type:
        return Remasking

    def test_it_masks_again(self) -> None:
        """The twin is what it says, so the suite has met a sampler of this kind."""
        steps = list(self.make(block_size=None).stream(fresh(PROMPTS)))
        times = torch.stack([step.committed for step in steps]).sum(0)
        assert int(times.max()) > 1
        assert len(steps) == 4


SUITES = [TestMDLM, TestBD3LM, TestQuota, TestNoCache, TestFinishedBlocks]
CAPABILITIES = {
    SamplerTests: {
        "supports_infill": False,
        "supports_temperature": False,
        "supports_guidance": False,
        "deterministic_at_zero": False,
        "follows_steps": False,
        "follows_schedule": False,
        "block_by_block": False,
        "ranks_by_confidence": False,
        "stops_at_eos": False,
        "may_remask": True,
    },
    CommitRuleTests: {"surest_first": False, "ties_go_left": False, "order_free": False, "asks_nothing": False},
    CachePolicyTests: {"exact": False},
}


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.__name__)
def test_whoever_declares_nothing_is_asked_less_and_told_why(suite: type[Suite]):
    """Undeclared capabilities are skipped with their name; the rest still runs and passes."""
    base = next(base for base in CAPABILITIES if issubclass(suite, base))
    modest = type("Modest", (base,), {"component": suite.component} | CAPABILITIES[base])
    skipped = {}
    for check in modest.checks():
        try:
            getattr(modest(), check)()
        except unittest.SkipTest as reason:
            skipped[check] = str(reason)
    assert len(skipped) < len(modest.checks())
    for name in CAPABILITIES[base]:
        gated = [check for check in modest.checks() if getattr(getattr(modest, check), "capability", None) == name]
        assert all(name in skipped[check] for check in gated)


def test_options_that_the_sampler_is_registered_with_are_used():
    options = {"temperature": 0.5, "confidence": "margin"}
    suite = type("Registered", (SamplerTests,), {"component": "core/mdlm", "options": options})()
    assert suite.make().options.confidence == "margin"
    assert suite.make(temperature=0.0).options.temperature == 0


def test_expectations_name_values():
    with pytest.raises(AssertionError, match=r"the count: got 3, expected 2"):
        expect_equal(3, 2, "the count")
    with pytest.raises(AssertionError, match=r"got shape \(2,\), expected \(3,\)"):
        expect_close(torch.zeros(2), torch.zeros(3), "logits")
    with pytest.raises(AssertionError, match=r"they differ by up to 0\.5"):
        expect_close(torch.tensor([0.0, torch.nan]), torch.tensor([0.5, torch.nan]), "logits")
    expect_close(torch.tensor([torch.nan]), torch.tensor([torch.nan]), "nan is nan")


def refuse(message: str, error: type[Exception] = OptionError):
    def call() -> None:
        raise error(message)

    return call


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: None, "steps=0 is accepted; raise OptionError"),
        (refuse("a number is wrong"), "without naming 'steps'"),
        (refuse("steps\nmust be"), "in several lines"),
        (refuse("division by zero", ZeroDivisionError), "ends in ZeroDivisionError"),
    ],
)
def test_refusals_must_be_clean(call, words):
    with pytest.raises(AssertionError, match=words):
        expect_refused(call, OptionError, "steps", "steps=0")
    expect_refused(refuse("steps must be at least 1"), OptionError, "steps", "steps=0")


def test_chi_square_tells_laws_apart():
    generator = torch.Generator().manual_seed(0)
    coins = (torch.rand(4000, 1, generator=generator) < 0.5).long()
    expect_fit(coins, {(0,): 0.5, (1,): 0.5})
    with pytest.raises(AssertionError, match=r"chi-square .* at 1 degrees of freedom"):
        expect_fit(coins, {(0,): 0.55, (1,): 0.45})
    with pytest.raises(AssertionError, match=r"hold \[\(1,\)\], whose probability is 0"):
        expect_fit(coins, {(0,): 1.0, (1,): 0.0})
    rare = {(n,): 0.5**n for n in range(1, 40)}
    counts = [(1,)] * 2000 + [(2,)] * 1000 + [(n,) for n in range(3, 13) for _ in range(100)]
    with pytest.raises(AssertionError, match="chi-square"):
        expect_fit(torch.tensor(counts), rare)
