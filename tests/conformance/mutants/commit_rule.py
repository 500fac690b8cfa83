"""Broken commit rules: each is a good rule with one defect, which one check of `CommitRuleTests` must catch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_core.config import within
from dllm_core.conformance.commit_rule import CommitRuleTests, Equivalence
from dllm_core.samplers import BlockSize, CommitRule, Proposal, Quota
from tests.conformance.mutant import Mutant, suite_for


def surest(values: Tensor, masked: Tensor, count: Tensor) -> Tensor:
    """The ``count`` (B,) highest of ``values`` (B, M) among the masked, the left ones of equals. -> (B, M) bool"""
    order = values.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(order.shape[1], device=order.device) < count[:, None]
    return torch.zeros_like(masked).scatter(1, order, chosen)


@dataclass(frozen=True, kw_only=True)
class Threshold(CommitRule):
    """Good: all positions that are sure enough, at least the surest one."""

    threshold: float = 0.6

    def __post_init__(self) -> None:
        within("threshold", self.threshold, 0.0, 1.0)

    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        return self.sure(proposal, masked) | surest(proposal.confidence, masked, masked.any(1).long())

    def sure(self, proposal: Proposal, masked: Tensor) -> Tensor:
        return (proposal.confidence >= self.threshold) & masked


class Undecorated(Quota):
    pass


@dataclass(kw_only=True, eq=False)
class Thawed:
    """No CommitRule at all, though it selects like one."""

    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        return surest(proposal.priority, masked, quota)


@dataclass(frozen=True, kw_only=True)
class TakesTheSamplersOption(Threshold):
    steps: int = 1


@dataclass(frozen=True, kw_only=True)
class AcceptsAnyThreshold(Threshold):
    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class ChoosesFiller(Threshold):
    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        everywhere = torch.ones_like(masked)
        return self.sure(proposal, masked) | surest(proposal.confidence, everywhere, masked.any(1).long())


@dataclass(frozen=True, kw_only=True)
class MayCommitNothing(Threshold):
    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        return self.sure(proposal, masked)


@dataclass(frozen=True, kw_only=True)
class OneTooFew(Quota):
    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        return super().select(proposal, masked, quota - (quota > 1).long())


@dataclass(frozen=True, kw_only=True)
class JudgesByTheBatch(Threshold):
    def sure(self, proposal: Proposal, masked: Tensor) -> Tensor:
        best = proposal.confidence.masked_fill(~masked, 0).amax()
        return (proposal.confidence >= self.threshold * best) & masked


@dataclass(frozen=True, kw_only=True)
class CountsFiller(Threshold):
    def sure(self, proposal: Proposal, masked: Tensor) -> Tensor:
        return (proposal.confidence >= proposal.confidence.mean(1, keepdim=True)) & masked


@dataclass(frozen=True, kw_only=True)
class StaysInSortedOrder(Threshold):
    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        count = super().select(proposal, masked, quota).sum(1, keepdim=True)
        return (masked.cumsum(1) <= count) & masked


@dataclass(frozen=True, kw_only=True)
class Noisy(Quota):
    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        return surest(proposal.priority + torch.rand_like(proposal.priority), masked, quota)


@dataclass(frozen=True, kw_only=True)
class TakesTheRightOfEquals(Quota):
    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        return surest(proposal.priority.flip(1), masked.flip(1), quota).flip(1)


@dataclass(frozen=True, kw_only=True)
class LeastSureFirst(Quota):
    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        return surest(-proposal.priority, masked, quota)


@dataclass(frozen=True, kw_only=True)
class RanksByConfidence(Quota):
    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        return surest(proposal.confidence, masked, quota)


@dataclass(frozen=True, kw_only=True)
class WritesIntoPriority(Quota):
    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        proposal.priority.masked_fill_(~masked, -torch.inf)
        return super().select(proposal, masked, quota)


@dataclass(frozen=True, kw_only=True)
class LiftsTheValues(Quota):
    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        return surest(proposal.priority + 8, masked, quota)


@dataclass(frozen=True, kw_only=True)
class LoopsOverRows(Quota):
    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        selected = torch.zeros_like(masked)
        for row in range(len(quota)):
            one = slice(row, row + 1)
            if quota[row] > 0:
                selected[one] = surest(proposal.priority[one], masked[one], quota[one])
        return selected


@dataclass(frozen=True, kw_only=True)
class TurnsTheThreshold(Threshold):
    def sure(self, proposal: Proposal, masked: Tensor) -> Tensor:
        return (proposal.confidence >= 1 - self.threshold) & masked


@dataclass(frozen=True, kw_only=True)
class CommitsTwo(Threshold):
    def select(self, proposal: Proposal, masked: Tensor, quota: Tensor) -> Tensor:
        return self.sure(proposal, masked) | surest(proposal.confidence, masked, masked.sum(1).clamp(max=2))


@dataclass(frozen=True, kw_only=True)
class PretendsToFollowTheQuota(Threshold):
    follows_quota = True


@dataclass(frozen=True, kw_only=True)
class MisspellsANeed(Threshold):
    needs = ("entropies",)


@dataclass(frozen=True, kw_only=True)
class RemembersUnasked(Threshold):
    def remember(self, size: BlockSize) -> Tensor:
        return torch.zeros(size.rows, size.places + 1, device=size.device)


@dataclass(frozen=True, kw_only=True)
class Patient(Threshold):
    """Good: a position's threshold falls with every step that it waits."""

    needs = ("places", "history")

    def remember(self, size: BlockSize) -> Tensor:
        return torch.zeros(size.rows, size.places + 1, device=size.device)

    def sure(self, proposal: Proposal, masked: Tensor) -> Tensor:
        return (proposal.confidence >= self.threshold - 0.2 * self.waited(proposal)) & masked

    def waited(self, proposal: Proposal) -> Tensor:
        before = proposal.history.gather(1, proposal.places)
        proposal.history.scatter_(1, proposal.places, before + 1)
        return before


@dataclass(frozen=True, kw_only=True)
class WaitsForTheBatch(Patient):
    def waited(self, proposal: Proposal) -> Tensor:
        return super().waited(proposal).mean().expand_as(proposal.confidence) * len(proposal.confidence)


@dataclass(frozen=True, kw_only=True)
class WeighsInPlace(Threshold):
    def weigh(self, logits: Tensor, places: Tensor, history: object | None) -> Tensor:
        return logits.mul_(2)


THRESHOLD: Mapping[str, object] = {
    "bad_options": {"threshold": (-0.1, 1.5, 90)},
    "monotone_in": {"threshold": (0.0, 0.2, 0.5, 0.9, 1.0)},
    "equivalent_to": (Equivalence(options={"threshold": 1.0}, other="core/quota", quota=1),),
}


def broken(check: str, rule: type, why: str) -> Mutant:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", rule.__name__).lower()
    suite = suite_for(CommitRuleTests, rule, **(THRESHOLD if issubclass(rule, Threshold) else {}))
    return Mutant(check=f"CommitRuleTests.{check}", name=name, suite=suite, why=why)


MUTANTS = [
    broken("test_options_are_a_frozen_dataclass", Undecorated, "is no dataclass of its own"),
    broken("test_options_are_a_frozen_dataclass", Thawed, "does not derive from CommitRule"),
    broken("test_options_are_a_frozen_dataclass", TakesTheSamplersOption, "names an option like one of the sampler's"),
    broken("test_bad_options_are_refused", AcceptsAnyThreshold, "accepts a threshold of 90"),
    broken("test_only_masks_are_chosen", ChoosesFiller, "chooses filler"),
    broken("test_every_row_moves_on", MayCommitNothing, "commits nothing where nothing is sure"),
    broken("test_the_quota_is_kept", OneTooFew, "commits one too few"),
    broken("test_a_row_is_the_same_alone", JudgesByTheBatch, "measures against the batch's surest position"),
    broken("test_a_row_is_the_same_alone", CountsFiller, "takes a mean that counts filler"),
    broken("test_the_order_of_slots_is_irrelevant", StaysInSortedOrder, "counts in sorted order, selects in the other"),
    broken("test_nothing_is_random", Noisy, "adds noise of its own"),
    broken("test_ties_go_to_the_left", TakesTheRightOfEquals, "takes the right ones of equals"),
    broken("test_surest_positions_come_first", LeastSureFirst, "takes the least sure first"),
    broken("test_the_quota_ranks_by_priority", RanksByConfidence, "ignores the confidence temperature"),
    broken("test_inputs_are_not_changed", WritesIntoPriority, "masks the priority in place"),
    broken("test_every_precision_selects_the_same", LiftsTheValues, "adds 8, after which half precision sees ties"),
    broken("test_the_device_is_asked_nothing", LoopsOverRows, "asks the device for every row's quota"),
    broken("test_inputs_are_not_changed", WeighsInPlace, "doubles the logits in place"),
    broken("test_needs_are_declared", MisspellsANeed, "needs what nothing measures"),
    broken("test_needs_are_declared", RemembersUnasked, "remembers without declaring that it needs a history"),
    broken("test_rows_of_a_batch_are_each_alone", WaitsForTheBatch, "lets a row's history depend on the other rows"),
    broken("test_options_are_monotone", TurnsTheThreshold, "commits more under a higher threshold"),
    broken("test_equivalences_hold", CommitsTwo, "commits at least two"),
    broken("test_every_block_ends", PretendsToFollowTheQuota, "declares that it follows the quota, and does not"),
]
