"""Broken cache policies: each is a good policy with one defect, which one check of `CachePolicyTests` must catch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dllm_core.config import at_least
from dllm_core.conformance.cache_policy import CachePolicyTests
from dllm_core.conformance.sampler_suite import LENGTH, MASK
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers import CachePolicy, NoCache
from tests.conformance.mutant import Mutant, suite_for

Answer = tuple[Tensor, int]


@dataclass(frozen=True, kw_only=True)
class Window(CachePolicy):
    """Good: leaves out the masks behind all tokens and open positions; on the toys nothing is lost by it.

    Args:
        window: columns that are computed beyond those.
    """

    window: int = 0

    def __post_init__(self) -> None:
        at_least("window", self.window, 0)

    def logits(self, denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor | None, at: Tensor) -> Answer:
        there = (input_ids != denoiser.mask_token_id).any(0).nonzero()
        stop = max(int(at.max()), int(there.max())) + 1 + self.window
        ids = input_ids[:, :stop]
        mask = None if attention_mask is None else attention_mask[:, :stop]
        return denoiser.logits(ids, mask, at=at), ids.numel()


class Undecorated(NoCache):
    pass


@dataclass(frozen=True, kw_only=True)
class TakesTheSamplersOption(Window):
    block_size: int = 32


@dataclass(frozen=True, kw_only=True)
class AcceptsAnyWindow(Window):
    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class GivesNeighbouringRows(NoCache):
    def logits(self, denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor | None, at: Tensor) -> Answer:
        return super().logits(denoiser, input_ids, attention_mask, (at - 1).clamp(min=0))


@dataclass(frozen=True, kw_only=True)
class CountsOpenPositions(NoCache):
    def logits(self, denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor | None, at: Tensor) -> Answer:
        return super().logits(denoiser, input_ids, attention_mask, at)[0], at.numel()


@dataclass(frozen=True, kw_only=True)
class ForgetsThePromptLater(Window):
    """The first step of a block sees everything; when fewer positions are open the first token is gone."""

    def logits(self, denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor | None, at: Tensor) -> Answer:
        if at.shape[1] < 2:
            input_ids = input_ids.clone()
            input_ids[:, 0] = MASK
        return super().logits(denoiser, input_ids, attention_mask, at)


@dataclass(frozen=True, kw_only=True)
class DropsTheMask(NoCache):
    def logits(self, denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor | None, at: Tensor) -> Answer:
        return super().logits(denoiser, input_ids, None, at)


@dataclass(frozen=True, kw_only=True)
class CountsColumns(NoCache):
    def logits(self, denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor | None, at: Tensor) -> Answer:
        columns = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return denoiser.logits(input_ids, attention_mask, at=at, position_ids=columns), input_ids.numel()


@dataclass(frozen=True, kw_only=True)
class ClaimsACache(NoCache):
    needs_kv_cache = True


@dataclass(frozen=True, kw_only=True)
class HidesItsCache(NoCache):
    def logits(self, denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor | None, at: Tensor) -> Answer:
        return denoiser.logits(input_ids, attention_mask, at=at, cache=object()), input_ids.numel()


@dataclass(frozen=True, kw_only=True)
class RemembersTheLastRun(NoCache):
    memory: dict = field(default_factory=dict)

    def logits(self, denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor | None, at: Tensor) -> Answer:
        key = (input_ids.shape[1], *at.flatten().tolist())
        if key not in self.memory:
            self.memory[key] = super().logits(denoiser, input_ids, attention_mask, at)[0]
        return self.memory[key].clone(), input_ids.numel()


@dataclass(frozen=True, kw_only=True)
class MarksPaddingInPlace(NoCache):
    def logits(self, denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor | None, at: Tensor) -> Answer:
        answer = super().logits(denoiser, input_ids, attention_mask, at)
        if attention_mask is not None:
            input_ids[~attention_mask] = MASK
        return answer


@dataclass(frozen=True, kw_only=True)
class MasksTheCanvas(NoCache):
    def logits(self, denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor | None, at: Tensor) -> Answer:
        input_ids[:, int(at.min()) - 1] = MASK
        return super().logits(denoiser, input_ids, attention_mask, at)


WINDOW: Mapping[str, object] = {"bad_options": {"window": (-1,)}, "refresh_options": {"window": LENGTH}}


def broken(check: str, policy: type[CachePolicy], why: str) -> Mutant:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", policy.__name__).lower()
    suite = suite_for(CachePolicyTests, policy, exact=True, **(WINDOW if issubclass(policy, Window) else {}))
    return Mutant(check=f"CachePolicyTests.{check}", name=name, suite=suite, why=why)


MUTANTS = [
    broken("test_options_are_a_frozen_dataclass", Undecorated, "is no dataclass of its own"),
    broken("test_options_are_a_frozen_dataclass", TakesTheSamplersOption, "names an option like one of the sampler's"),
    broken("test_bad_options_are_refused", AcceptsAnyWindow, "accepts a negative window"),
    broken("test_the_first_answer_is_a_full_forward", GivesNeighbouringRows, "gives the rows one to the left"),
    broken("test_counts_are_true", CountsOpenPositions, "counts open positions only, computes all"),
    broken("test_every_step_is_that_of_no_cache", ForgetsThePromptLater, "loses the first token in later steps"),
    broken("test_refreshing_every_step_is_no_cache", ForgetsThePromptLater, "loses the first token in later steps"),
    broken("test_a_row_is_the_same_alone_and_in_any_batch", DropsTheMask, "drops the attention mask"),
    broken("test_padding_is_not_seen", DropsTheMask, "drops the attention mask"),
    broken("test_positions_are_the_rows_own", CountsColumns, "counts positions by columns"),
    broken("test_needs_kv_cache_is_true", ClaimsACache, "declares a cache that it never brings"),
    broken("test_needs_kv_cache_is_true", HidesItsCache, "brings a cache that it does not declare"),
    broken("test_runs_do_not_mix", RemembersTheLastRun, "answers from the run before"),
    broken("test_inputs_are_not_changed", MarksPaddingInPlace, "writes into the canvas it is given"),
    broken("test_every_block_ends", MasksTheCanvas, "masks the loop's own canvas"),
]
