"""Broken samplers: each is the core's with one defect, which one check of `SamplerTests` must catch."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from dllm_core.conformance.sampler import SamplerTests
from dllm_core.conformance.sampler_suite import MASK, VOCAB
from dllm_core.models.denoiser import Denoiser
from dllm_core.noise.counter import uniform
from dllm_core.samplers import CommitRule, MDLMSampler, Proposal, SampleOutput, SamplerState, Step
from dllm_core.samplers.state import Block
from tests.conformance.mutant import Mutant, suite_for


class Shifty(MDLMSampler):
    """Base of samplers that believe another shift than the model's family declares."""

    believes: bool

    def __init__(self, denoiser: Denoiser, **options: object) -> None:
        ids = {"mask": denoiser.mask_token_id, "pad": denoiser.pad_token_id}
        ids |= {} if denoiser.eos_token_id is None else {"eos": denoiser.eos_token_id}
        shifty = Denoiser(denoiser.model, denoiser.adapter, special_ids=ids, logits_are_shifted=self.believes)
        super().__init__(shifty, **options)


class OtherOptions(MDLMSampler):
    """Base of samplers that run with other options than they were given."""

    def __init__(self, denoiser: Denoiser, **options: object) -> None:
        super().__init__(denoiser, **options)
        self.options = replace(self.options, **self.other())

    def other(self) -> dict[str, object]:
        raise NotImplementedError


class OverwritesPrompt(MDLMSampler):
    def start(self, prompts) -> SamplerState:
        state = super().start(prompts)
        state.input_ids[:, 0] = (state.input_ids[:, 0] + 1) % VOCAB
        return state


class EndsBlocksEarly(MDLMSampler):
    def open_block(self, state: SamplerState) -> Block | None:
        block = super().open_block(state)
        if block is not None and len(block.open_counts) > 1:
            block.open_counts.pop()
        return block


class ChoosesMasks(MDLMSampler):
    def revise(self, state: SamplerState, ids: torch.Tensor) -> torch.Tensor:
        before = state.input_ids[state.block.rows, : ids.shape[1]]
        best = self.denoiser.logits(before, state.block.layout.attention_mask).argmax(-1)
        return torch.where((ids != before) & (best == MASK), MASK, ids)


class BatchLengths(MDLMSampler):
    def finish(self, state: SamplerState) -> SampleOutput:
        output = super().finish(state)
        return replace(output, lengths=torch.full_like(output.lengths, int(output.lengths.max())))


class ReadsOutThePrompt(MDLMSampler):
    def finish(self, state: SamplerState) -> SampleOutput:
        output = super().finish(state)
        decode = self.denoiser.tokenizer.batch_decode
        return replace(output, texts=decode(output.sequences, skip_special_tokens=True))


class ReadsOnAfterTheEnd(MDLMSampler):
    def finish(self, state: SamplerState) -> SampleOutput:
        output = super().finish(state)
        rows = [row[start:] for row, start in zip(output.sequences, output.prompt_lengths, strict=True)]
        return replace(output, texts=self.denoiser.tokenizer.batch_decode(rows, skip_special_tokens=True))


class KeepsMaxLength(MDLMSampler):
    def sample(self, prompts=None, *, prompt=None, max_length=None) -> SampleOutput:
        if max_length is not None:
            self.options = replace(self.options, max_length=max_length, max_new_tokens=None)
        return super().sample(prompts, prompt=prompt)


class ReadsOneOff(Shifty):
    believes = True


class IgnoresTopK(OtherOptions):
    def other(self) -> dict[str, object]:
        return {"top_k": None}


@dataclass(frozen=True, kw_only=True)
class LeftToRight(CommitRule):
    follows_quota = True

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        return (masked.cumsum(1) <= quota[:, None]) & masked


class WritesLeftToRight(MDLMSampler):
    def __init__(self, denoiser: Denoiser, **options: object) -> None:
        super().__init__(denoiser, **options)
        self.rule = LeftToRight()


class ForbidsForLast(OtherOptions):
    def other(self) -> dict[str, object]:
        return {"suppress_tokens": self.options.suppress_confidence_tokens}


class LastForForbids(OtherOptions):
    def other(self) -> dict[str, object]:
        return {"suppress_tokens": (), "suppress_confidence_tokens": self.options.suppress_tokens}


class RunsToTheEnd(OtherOptions):
    def other(self) -> dict[str, object]:
        return {"stop_at_eos": False}


class EndsAllRowsAtOnce(MDLMSampler):
    def open_block(self, state: SamplerState) -> Block | None:
        if len(state.active) < len(state.canvas.rows):
            state.active = []
        return super().open_block(state)


class InfillsLikeCompletions(MDLMSampler):
    def start_infill(self, canvases) -> SamplerState:
        state = super().start_infill(canvases)
        state.canvas = replace(state.canvas, completes=True)
        return state


class CallsTheModelItself(Shifty):
    believes = False


class GuidesOneLess(OtherOptions):
    def other(self) -> dict[str, object]:
        return {"guidance_scale": max(self.options.guidance_scale - 1, 0)}


class IgnoresSteps(OtherOptions):
    def other(self) -> dict[str, object]:
        return {"steps": None}


class WritesManyFirst(MDLMSampler):
    def open_block(self, state: SamplerState) -> Block | None:
        block = super().open_block(state)
        if block is None:
            return None
        quota = block.quota.sort(dim=1, descending=True).values
        masks = int(quota.sum(1).max())
        return replace(block, quota=quota, open_counts=[masks] * len(block.open_counts))


class IgnoresBlocks(OtherOptions):
    def other(self) -> dict[str, object]:
        return {"block_size": None}


class StreamsAnotherSeed(MDLMSampler):
    def stream(self, prompts) -> Iterator[Step]:
        other = MDLMSampler(self.denoiser)
        other.options = replace(self.options, seed=self.options.seed + 1)
        return other.stream(prompts)


class FinishesEarly(MDLMSampler):
    def finish(self, state: SamplerState) -> SampleOutput:
        state.block = None
        return super().finish(state)


class CountsFromOne(MDLMSampler):
    def step(self, state: SamplerState) -> Step:
        step = super().step(state)
        return replace(step, index=step.index + 1)


class IsDoneTooEarly(MDLMSampler):
    def step(self, state: SamplerState) -> Step:
        step = super().step(state)
        return replace(step, done=torch.ones_like(step.done))


class ForgetsConfidence(MDLMSampler):
    def step(self, state: SamplerState) -> Step:
        step = super().step(state)
        return replace(step, confidence=step.confidence.masked_fill(step.committed, torch.nan))


class KeepsTheGraph(MDLMSampler):
    def step(self, state: SamplerState) -> Step:
        return MDLMSampler.step.__wrapped__(self, state)  # without its torch.no_grad


class YieldsTheLiveCanvas(MDLMSampler):
    def step(self, state: SamplerState) -> Step:
        return replace(super().step(state), input_ids=state.input_ids)


class MarksProposals(MDLMSampler):
    def step(self, state: SamplerState) -> Step:
        step = super().step(state)
        return replace(step, committed=~step.confidence.isnan())


class RewritesTokens(MDLMSampler):
    def step(self, state: SamplerState) -> Step:
        again = torch.zeros_like(state.input_ids, dtype=torch.bool)
        for row, first in enumerate(state.canvas.prompt_lengths):
            again[row, first] = state.input_ids[row, first] != MASK
        step = super().step(state)
        return replace(step, committed=step.committed | again)


class CountsOpenPositions(MDLMSampler):
    def finish(self, state: SamplerState) -> SampleOutput:
        state.stats.positions_processed = state.stats.logit_rows
        return super().finish(state)


class ForgetsTheFirstPass(MDLMSampler):
    def finish(self, state: SamplerState) -> SampleOutput:
        state.stats.forward_passes -= 1
        return super().finish(state)


class CountsWhatFollowsTheEnd(MDLMSampler):
    def finish(self, state: SamplerState) -> SampleOutput:
        output = super().finish(state)
        output.stats.tokens = int((output.lengths - output.prompt_lengths).sum())
        return output


class AlwaysDraws(OtherOptions):
    def other(self) -> dict[str, object]:
        return {"temperature": self.options.temperature or 0.5}


class SeedsFromTheProcess(OtherOptions):
    def other(self) -> dict[str, object]:
        return {"seed": self.options.seed + torch.initial_seed()}


class IgnoresTheSeed(OtherOptions):
    def other(self) -> dict[str, object]:
        return {"seed": 0}


class RepeatsItself(MDLMSampler):
    def start(self, prompts) -> SamplerState:
        state = super().start(prompts)
        same = (state.input_ids[:, None] == state.input_ids).all(-1)  # (B, B)
        state.keys = state.keys[same.long().argmax(1)]
        return state


class SeedsAllRowsAlike(MDLMSampler):
    def start(self, prompts) -> SamplerState:
        if not isinstance(self.options.seed, int) and len(self.options.seed) == len(prompts):
            self.options = replace(self.options, seed=self.options.seed[0])
        return super().start(prompts)


class SeedsTheProcess(MDLMSampler):
    def start(self, prompts) -> SamplerState:
        torch.manual_seed(self.options.seed)
        return super().start(prompts)


class UsesPythonsGenerator(MDLMSampler):
    def start(self, prompts) -> SamplerState:
        random.random()
        return super().start(prompts)


class DropsTheRowMask(MDLMSampler):
    def open_block(self, state: SamplerState) -> Block | None:
        block = super().open_block(state)
        return None if block is None else replace(block, layout=replace(block.layout, attention_mask=None))


class NumbersNoiseByRow(MDLMSampler):
    def noise(self, state: SamplerState, purpose: int, positions: torch.Tensor) -> torch.Tensor:
        keys = state.block.rows[:, None] + self.options.seed
        return uniform(keys, purpose, state.block.number, state.block.step, positions)


class RanksFiller(MDLMSampler):
    def __init__(self, denoiser: Denoiser, **options: object) -> None:
        super().__init__(denoiser, **options)
        self.rule = SureAsTheBatch()


@dataclass(frozen=True, kw_only=True)
class SureAsTheBatch(CommitRule):
    """All positions as sure as the mean of all slots, filler too; at least one a row."""

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        sure = proposal.confidence >= proposal.confidence.mean(1, keepdim=True)
        best = proposal.confidence.masked_fill(~masked, -torch.inf).argmax(1, keepdim=True)
        return (sure | torch.zeros_like(masked).scatter(1, best, True)) & masked


class CountsItsDraws(MDLMSampler):
    drawn = 0

    def noise(self, state: SamplerState, purpose: int, positions: torch.Tensor) -> torch.Tensor:
        self.drawn += 1
        return super().noise(state, purpose + 16 * self.drawn, positions)


class HalvesTheTemperature(OtherOptions):
    def other(self) -> dict[str, object]:
        return {"temperature": self.options.temperature / 2}


class RanksByItsDraws(OtherOptions):
    def other(self) -> dict[str, object]:
        return {"confidence": "probability"}


class TakesNoSteps(MDLMSampler):
    def __init__(self, denoiser: Denoiser, **options: object) -> None:
        super().__init__(denoiser, **(options | {"steps": options.get("steps") or None}))


class SwallowsUnknownOptions(MDLMSampler):
    def __init__(self, denoiser: Denoiser, no_such_option: object = None, **options: object) -> None:
        super().__init__(denoiser, **options)


class ClaimsToKnowNoBlocks(MDLMSampler):
    """Its suite declares that it lacks ``block_size``, which it has."""


class FillsMasksInPrompts(MDLMSampler):
    def start(self, prompts) -> SamplerState:
        if isinstance(prompts, list) and isinstance(prompts[0], list):
            prompts = [[0 if token == MASK else token for token in prompt] for prompt in prompts]
        return super().start(prompts)


class ExtendsPrompts(MDLMSampler):
    def sample(self, prompts=None, *, prompt=None, max_length=None) -> SampleOutput:
        output = super().sample(prompts, prompt=prompt, max_length=max_length)
        if isinstance(prompts, list):
            prompts[0].extend([0])
        return output


class SwitchesToEvaluation(MDLMSampler):
    def start(self, prompts) -> SamplerState:
        self.denoiser.model.eval()
        return super().start(prompts)


class LeavesGradientsOff(MDLMSampler):
    def stream(self, prompts) -> Iterator[Step]:
        with torch.no_grad():
            yield from super().stream(prompts)


class TakesIdsForPrompts(MDLMSampler):
    def start(self, prompts) -> SamplerState:
        flat = isinstance(prompts, list) and isinstance(prompts[0], int)
        return super().start([[token] for token in prompts] if flat else prompts)


def broken(check: str, sampler: type[MDLMSampler], why: str, **declared: object) -> Mutant:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", sampler.__name__).lower()
    suite = suite_for(SamplerTests, sampler, samples_exactly=True, **declared)
    return Mutant(check=f"SamplerTests.{check}", name=name, suite=suite, why=why)


MUTANTS = [
    broken("test_prompt_is_untouched", OverwritesPrompt, "writes a token into the prompt"),
    broken("test_no_mask_is_left", EndsBlocksEarly, "leaves out the last step of a block"),
    broken("test_mask_token_is_never_chosen", ChoosesMasks, "commits the mask token where the model favours it"),
    broken("test_lengths_are_those_asked_for", BatchLengths, "gives every row the length of the longest"),
    broken("test_texts_are_the_completions", ReadsOutThePrompt, "gives the prompt as part of the text"),
    broken("test_texts_are_the_completions", ReadsOnAfterTheEnd, "gives what follows the end of sequence"),
    broken("test_max_length_holds_for_one_call", KeepsMaxLength, "keeps max_length for the next call"),
    broken("test_one_greedy_step_takes_the_best_tokens", ReadsOneOff, "reads scores one position off"),
    broken("test_one_token_is_left_by_top_k_1_and_by_a_small_top_p", IgnoresTopK, "ignores top_k"),
    broken("test_surest_positions_are_written_first", WritesLeftToRight, "writes from left to right"),
    broken("test_suppressed_confidence_leaves_the_tokens_alone", ForbidsForLast, "forbids what should rank last"),
    broken("test_suppressed_tokens_never_appear", LastForForbids, "ranks last what should be forbidden"),
    broken("test_end_of_sequence_saves_work_and_keeps_the_text", RunsToTheEnd, "runs on after an end of sequence"),
    broken("test_end_of_sequence_saves_work_and_keeps_the_text", EndsAllRowsAtOnce, "ends all rows with the first"),
    broken("test_infill_touches_masks_only", InfillsLikeCompletions, "ends a canvas at an end of sequence inside it"),
    broken("test_right_shift_changes_nothing", CallsTheModelItself, "reads a right-shifted model as it comes"),
    broken("test_guidance_is_the_published_formula", GuidesOneLess, "takes the guidance scale one too low"),
    broken("test_steps_are_those_asked_for", IgnoresSteps, "ignores steps"),
    broken("test_commits_follow_the_schedule", WritesManyFirst, "writes many tokens first, few at the end"),
    broken("test_blocks_are_finished_one_after_the_other", IgnoresBlocks, "ignores block_size"),
    broken("test_stream_ends_in_sample", StreamsAnotherSeed, "streams with another seed"),
    broken("test_step_by_step_is_sample", FinishesEarly, "gives a result before the run is finished"),
    broken("test_steps_are_well_formed", CountsFromOne, "counts steps from 1"),
    broken("test_steps_are_well_formed", IsDoneTooEarly, "says done while masks are left"),
    broken("test_steps_are_well_formed", ForgetsConfidence, "reports no confidence where it writes"),
    broken("test_steps_are_well_formed", KeepsTheGraph, "keeps the model's graph in every step"),
    broken("test_steps_stay_as_they_were", YieldsTheLiveCanvas, "yields the canvas that it goes on writing"),
    broken("test_committed_is_what_changed", MarksProposals, "marks proposals as commits"),
    broken("test_nothing_is_written_twice", RewritesTokens, "commits a position again in later steps"),
    broken("test_counts_are_true", CountsOpenPositions, "counts open positions only, computes all"),
    broken("test_counts_are_true", ForgetsTheFirstPass, "forgets one forward pass"),
    broken("test_counts_are_true", CountsWhatFollowsTheEnd, "counts tokens after the end of sequence"),
    broken("test_temperature_0_ignores_the_seed", AlwaysDraws, "draws at temperature 0"),
    broken("test_same_seed_gives_the_same_texts", SeedsFromTheProcess, "adds the process's seed to its own"),
    broken("test_other_seeds_give_other_texts", IgnoresTheSeed, "ignores the seed"),
    broken("test_other_seeds_give_other_texts", RepeatsItself, "gives copies of a prompt one text"),
    broken("test_every_row_may_have_its_own_seed", SeedsAllRowsAlike, "takes the first seed for all rows"),
    broken("test_global_random_numbers_are_left_alone", SeedsTheProcess, "seeds torch's global generator"),
    broken("test_global_random_numbers_are_left_alone", UsesPythonsGenerator, "draws from Python's global generator"),
    broken("test_a_row_is_the_same_alone_and_in_any_batch", DropsTheRowMask, "lets short rows see their padding"),
    broken("test_a_row_is_the_same_alone_and_in_any_batch", NumbersNoiseByRow, "keys noise by the row's number"),
    broken("test_a_canvas_is_the_same_alone_and_in_any_batch", RanksFiller, "compares with filler slots"),
    broken("test_the_order_of_rows_is_irrelevant", NumbersNoiseByRow, "keys noise by the row's number"),
    broken("test_runs_do_not_mix", CountsItsDraws, "keys noise by a counter on the sampler"),
    broken("test_samples_follow_the_joint_distribution", HalvesTheTemperature, "draws at half the temperature"),
    broken("test_samples_follow_the_joint_distribution", RanksByItsDraws, "lets the order depend on what is drawn"),
    broken("test_bad_options_are_refused", TakesNoSteps, "takes steps=0 for no limit"),
    broken("test_bad_options_are_refused", SwallowsUnknownOptions, "swallows an unknown option"),
    broken(
        "test_bad_options_are_refused",
        ClaimsToKnowNoBlocks,
        "takes an option that it is declared to lack",
        lacks=("block_size",),
        block_by_block=False,
    ),
    broken("test_bad_prompts_are_refused", FillsMasksInPrompts, "fills masks inside prompts"),
    broken("test_inputs_are_not_changed", ExtendsPrompts, "extends the caller's prompt"),
    broken("test_the_model_is_left_as_it_was", SwitchesToEvaluation, "switches the model to evaluation for good"),
    broken("test_the_model_is_left_as_it_was", LeavesGradientsOff, "switches gradients off between two steps"),
    broken("test_prompts_may_be_one_several_or_tensors", TakesIdsForPrompts, "takes ids for prompts of one token"),
]
