"""Broken cache policies: each is a good policy with one defect, which one check of `CachePolicyTests` must catch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dllm_core.config import at_least
from dllm_core.conformance.cache_policy import CachePolicyTests
from dllm_core.conformance.sampler_suite import LENGTH, MASK
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers import Answer, CachePolicy, CacheRun, NoCache, View
from dllm_core.samplers.cache import FinishedBlocksRun, NoCacheRun
from dllm_core.samplers.view import BLOCK_CAUSAL
from tests.conformance.mutant import Mutant, suite_for


class WindowRun(CacheRun):
    window = 0

    def logits(self, view: View) -> Answer:
        there = (view.input_ids != self.denoiser.mask_token_id).any(0).nonzero()
        stop = max(int(view.at.max()), int(there.max())) + 1 + self.window
        return view.computed_anew(self.denoiser, min(stop, view.input_ids.shape[1]))._replace(host_syncs=3)


@dataclass(frozen=True, kw_only=True)
class Window(CachePolicy):
    """Good: leaves out the masks behind all tokens and open positions; on the toys nothing is lost by it.

    Args:
        window: columns that are computed beyond those.
    """

    window: int = 0

    def __post_init__(self) -> None:
        at_least("window", self.window, 0)

    def start(self, denoiser: Denoiser, rows: int, length: int) -> CacheRun:
        run = WindowRun(denoiser, rows, length)
        run.window = self.window
        return run


class Undecorated(NoCache):
    pass


@dataclass(frozen=True, kw_only=True)
class TakesTheSamplersOption(Window):
    block_size: int = 32


@dataclass(frozen=True, kw_only=True)
class AcceptsAnyWindow(Window):
    def __post_init__(self) -> None:
        pass


def answering(run: type[CacheRun], base: type[CachePolicy] = NoCache, **attributes: object) -> type[CachePolicy]:
    """A policy whose runs are of that class, named like it without its ending."""
    body = {"start": lambda self, denoiser, rows, length: run(denoiser, rows, length)}
    policy = type(run.__name__.removesuffix("Run"), (base,), body | attributes)
    return dataclass(frozen=True, kw_only=True)(policy)


class GivesNeighbouringRowsRun(NoCacheRun):
    def logits(self, view: View) -> Answer:
        return super().logits(replace(view, at=(view.at - 1).clamp(min=0)))


class CountsOpenPositionsRun(NoCacheRun):
    def logits(self, view: View) -> Answer:
        return super().logits(view)._replace(positions=view.at.numel())


class AsksInSecretRun(NoCacheRun):
    def logits(self, view: View) -> Answer:
        width = view.input_ids.shape[1] if bool((view.input_ids == MASK).any()) else 1
        return view.computed_anew(self.denoiser, width)


class ForgetsThePromptLaterRun(WindowRun):
    """The first step of a block sees everything; when fewer positions are open the first token is gone."""

    def logits(self, view: View) -> Answer:
        ids = view.input_ids.clone()
        if view.at.shape[1] < 2:
            ids[:, 0] = MASK
        return super().logits(replace(view, input_ids=ids))


class DropsTheMaskRun(NoCacheRun):
    def logits(self, view: View) -> Answer:
        width = view.input_ids.shape[1]
        everywhere = torch.full_like(view.layout.ends, width)
        return super().logits(replace(view, layout=replace(view.layout, attention_mask=None, ends=everywhere)))


class HidesItsCacheRun(FinishedBlocksRun):
    pass


class SaysNothingOfItsMemoryRun(FinishedBlocksRun):
    def __init__(self, denoiser: Denoiser, rows: int, length: int) -> None:
        super().__init__(denoiser, rows, length)
        self.cache_bytes = 0


class KeepsBlocksAsTheyWereRun(FinishedBlocksRun):
    """The last tokens of a block are written after its last pass; here it is never computed with them."""

    def logits(self, view: View) -> Answer:
        if view.step == 0 and any(self.final):
            self.final = list(view.layout.starts)
        return super().logits(view)


class LooksAheadRun(FinishedBlocksRun):
    """The block that is computed once more looks at the one behind it, which its keys then tell of."""

    def logits(self, view: View) -> Answer:
        layout = view.layout
        no_grid = replace(layout, origins=torch.zeros_like(layout.origins), block_size=max(layout.lengths))
        return super().logits(replace(view, layout=no_grid))


class KeepsTheWrongRowsRun(FinishedBlocksRun):
    def keep(self, rows: Tensor) -> None:
        super().keep(torch.arange(len(rows)))


class ForgetsTheLeadRun(FinishedBlocksRun):
    """The scores of a block's first token are those that its own position gives, which are of the token behind it."""

    def logits(self, view: View) -> Answer:
        self.lead = None if self.lead is None else torch.zeros_like(self.lead)
        return super().logits(view)


class RememberingRun(NoCacheRun):
    memory: dict

    def logits(self, view: View) -> Answer:
        key = (view.input_ids.shape[1], *view.at.flatten().tolist())
        if key not in self.memory:
            self.memory[key] = super().logits(view)
        return self.memory[key]._replace(logits=self.memory[key].logits.clone())


@dataclass(frozen=True, kw_only=True)
class RemembersTheLastRun(NoCache):
    memory: dict = field(default_factory=dict)

    def start(self, denoiser: Denoiser, rows: int, length: int) -> CacheRun:
        run = RememberingRun(denoiser, rows, length)
        run.memory = self.memory
        return run


class MarksPaddingInPlaceRun(NoCacheRun):
    def logits(self, view: View) -> Answer:
        answer = super().logits(view)
        if view.layout.attention_mask is not None:
            view.input_ids[~view.layout.attention_mask] = MASK
        return answer


class MasksTheCanvasRun(NoCacheRun):
    def logits(self, view: View) -> Answer:
        view.input_ids[:, int(view.at.min()) - 1] = MASK
        return super().logits(view)


WINDOW: Mapping[str, object] = {"bad_options": {"window": (-1,)}, "refresh_options": {"window": LENGTH}}


def broken(check: str, policy: type[CachePolicy], why: str) -> Mutant:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", policy.__name__).lower()
    suite = suite_for(CachePolicyTests, policy, exact=True, **(WINDOW if issubclass(policy, Window) else {}))
    return Mutant(check=f"CachePolicyTests.{check}", name=name, suite=suite, why=why)


BLOCK = {"needs_kv_cache": True, "serves": (BLOCK_CAUSAL,)}

MUTANTS = [
    broken("test_options_are_a_frozen_dataclass", Undecorated, "is no dataclass of its own"),
    broken("test_options_are_a_frozen_dataclass", TakesTheSamplersOption, "names an option like one of the sampler's"),
    broken("test_bad_options_are_refused", AcceptsAnyWindow, "accepts a negative window"),
    broken("test_runs_do_not_mix", RemembersTheLastRun, "answers from the run before"),
    *(
        broken(check, answering(run, **attributes), why)
        for check, run, attributes, why in (
            ("test_the_first_answer_is_a_full_forward", GivesNeighbouringRowsRun, {}, "gives the rows one to the left"),
            ("test_counts_are_true", CountsOpenPositionsRun, {}, "counts open positions only, computes all"),
            ("test_counts_are_true", AsksInSecretRun, {}, "asks the device at every step and does not say so"),
            (
                "test_every_step_is_that_of_no_cache",
                ForgetsThePromptLaterRun,
                {"base": Window},
                "loses the first token in later steps",
            ),
            (
                "test_every_step_is_that_of_no_cache",
                KeepsBlocksAsTheyWereRun,
                BLOCK,
                "keeps a block's keys from before its last tokens were written",
            ),
            (
                "test_every_step_is_that_of_no_cache",
                LooksAheadRun,
                BLOCK,
                "lets the prompt and finished blocks look at the block behind them",
            ),
            (
                "test_every_step_is_that_of_no_cache",
                ForgetsTheLeadRun,
                BLOCK,
                "loses the scores of a block's first token where logits are shifted",
            ),
            (
                "test_refreshing_every_step_is_no_cache",
                ForgetsThePromptLaterRun,
                {"base": Window},
                "loses the first token in later steps",
            ),
            ("test_a_row_is_the_same_alone_and_in_any_batch", DropsTheMaskRun, {}, "drops the attention mask"),
            (
                "test_a_row_is_the_same_alone_and_in_any_batch",
                KeepsTheWrongRowsRun,
                BLOCK,
                "keeps the wrong rows when one is finished",
            ),
            ("test_padding_is_not_seen", DropsTheMaskRun, {}, "drops the attention mask"),
            ("test_memory_is_stated", SaysNothingOfItsMemoryRun, BLOCK, "says that it takes no memory"),
            ("test_needs_kv_cache_is_true", NoCacheRun, {"needs_kv_cache": True}, "declares a cache it never brings"),
            (
                "test_needs_kv_cache_is_true",
                HidesItsCacheRun,
                {"serves": (BLOCK_CAUSAL,)},
                "brings a cache that it does not declare",
            ),
            ("test_inputs_are_not_changed", MarksPaddingInPlaceRun, {}, "writes into the canvas it is given"),
            ("test_every_block_ends", MasksTheCanvasRun, {}, "masks the loop's own canvas"),
        )
    ),
]
