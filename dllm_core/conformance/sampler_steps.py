"""Checks of how a sampler gets there: its steps, its blocks, and the counts that it reports.

Shapes: B rows, L canvas length.
"""

from __future__ import annotations

import itertools
import unittest

import torch

from dllm_core.conformance.counting import counted
from dllm_core.conformance.expect import expect, expect_equal, expect_refused
from dllm_core.conformance.sampler_suite import (
    END,
    LENGTH,
    MASK,
    NEW,
    PAD,
    PROMPTS,
    STEPS,
    SamplerSuite,
    completions,
    fresh,
    start_of,
    steps_of,
)
from dllm_core.conformance.suite import requires
from dllm_core.errors import PromptError
from dllm_core.samplers import Step
from dllm_core.samplers.quota import quota_counts


class StepChecks(SamplerSuite):
    """How a sampler gets to its result."""

    @requires("follows_steps")
    def test_steps_are_those_asked_for(self) -> None:
        """``steps=1`` takes one forward pass, ``steps=length`` one a token, whatever lies between lies between.

        Why: a step budget that is lost on its way (to blocks, to a default) makes results slow or bad, silently.

        Mend: give each block ceil(steps / blocks) steps (`dllm_core.samplers.planning.steps_per_block`).
        """
        for steps in (1, 2, NEW, None):
            output = self.make(steps=steps, block_size=None, temperature=0.0).sample(fresh(PROMPTS))
            want = NEW if steps is None else steps
            expect_equal(output.stats.forward_passes, want, f"forward passes with steps={steps} for {NEW} tokens")
        passes = self.make(steps=2, block_size=2, temperature=0.0).sample([0, 1]).stats.forward_passes
        expect_equal(passes, 2, "forward passes with steps=2 for two blocks of two tokens")

    @requires("follows_schedule")
    def test_commits_follow_the_schedule(self) -> None:
        """Each step writes as many tokens as quota and schedule say.

        Why: the order of many and few decides quality (a cosine schedule is careful first); counts in reverse, or off
        by one and caught up at the end, fill the canvas just as well.

        Mend: take the counts of `dllm_core.samplers.quota.quota_counts`, in their order.
        """
        for quota, schedule, steps in itertools.product(("schedule", "even"), ("linear", "cosine"), (1, 2, 3, NEW)):
            options = {"quota": quota, "schedule": schedule, "steps": steps, "block_size": None}
            got = [int(step.committed.sum()) for step in steps_of(self.make(**options), PROMPTS[:1])]
            expect_equal(
                got, list(quota_counts(NEW, steps, quota, schedule)), f"tokens written by the steps, {options}"
            )

    @requires("block_by_block")
    def test_blocks_are_finished_one_after_the_other(self) -> None:
        """A block is complete before the next one is begun, and spans at most ``block_size`` positions.

        Why: block caches and the end-of-sequence stop rest on it; a block size that is ignored looks right in the text.

        Mend: propose only at the open positions of the current block, and number blocks from left to right.
        """
        for block_size in (1, 3):
            steps = steps_of(self.make(block_size=block_size, temperature=self.temperature), PROMPTS)
            numbers = [step.block for step in steps]
            expect_equal(numbers, sorted(numbers), f"block numbers with block_size={block_size} go back")
            for row in range(len(PROMPTS)):
                spans = [_span(steps, row, number) for number in sorted(set(numbers))]
                spans = [span for span in spans if span]
                words = f"row {row} with block_size={block_size} writes blocks at {spans}"
                expect(all(span[-1] - span[0] < block_size for span in spans), f"{words}; a block is wider than that")
                ordered = all(before[-1] < after[0] for before, after in itertools.pairwise(spans))
                expect(ordered, f"{words}; finish one before the next")

    def test_stream_ends_in_sample(self) -> None:
        """The last step of ``stream`` holds the sequences of ``sample``.

        Why: two loops that should be one drift apart; what is shown while it is made is then not what is returned.

        Mend: run ``sample`` as ``stream`` to its end; draw noise from the row's key, not from a generator.
        """
        for words, sampler in self.settings(self.denoiser(eos=END, pad=PAD)):
            steps = steps_of(sampler, PROMPTS)
            expect(len(steps) > 0, f"the stream with {words} has no step; yield one for every forward pass")
            want = sampler.sample(fresh(PROMPTS)).sequences
            expect_equal(steps[-1].input_ids, want, f"the last step of the stream with {words}")

    def test_step_by_step_is_sample(self) -> None:
        """``start``, ``step`` until finished and ``finish`` give what ``sample`` gives; other orders are refused.

        Why: servers let rows finish on their own with this form; a step too many must not change a finished text.

        Mend: keep everything of a run in its `SamplerState`; raise PromptError after its end, and for an early finish.
        """
        sampler = self.make(temperature=self.temperature)
        state = sampler.start(fresh(PROMPTS))
        expect_refused(lambda: sampler.finish(state), PromptError, "finished", "finish() before the last step")
        for _ in range(STEPS):
            if not state.finished:
                sampler.step(state)
        expect(state.finished, f"the run is not finished after {STEPS} steps; make every step commit something")
        want = sampler.sample(fresh(PROMPTS))
        expect_equal(sampler.finish(state).sequences, want.sequences, "sequences step by step")
        expect_refused(lambda: sampler.step(state), PromptError, "finished", "a step after the last")

    def test_steps_are_well_formed(self) -> None:
        """Every `Step` has the shapes, types and order that displays and servers rely on.

        Why: a live view indexes ``input_ids`` with ``committed`` and waits for ``done``; a row that is done too early
        is shown with holes, one that wakes up again is shown twice.

        Mend: build steps as `dllm_core.samplers.output.Step` says: index from 0, done once and for all.
        """
        for words, sampler in self.settings(self.denoiser(eos=END, pad=PAD)):
            steps = steps_of(sampler, PROMPTS)
            expect_equal([step.index for step in steps], list(range(len(steps))), f"step indices with {words}")
            for step in steps:
                expect_shapes(step, f"step {step.index} with {words}")
            done = torch.stack([step.done for step in steps]).long()  # (S, B)
            expect(bool((done.diff(dim=0) >= 0).all()), f"with {words} a row is done and then not: {done.tolist()}")
            expect(bool(done[-1].all()), f"with {words} the last step leaves rows undone: {done[-1].tolist()}")
            for row, prompt in enumerate(PROMPTS):
                first = int(done[:, row].argmax())
                ids = [step.input_ids[row, : len(prompt) + NEW].tolist() for step in steps[first:]]
                expect(MASK not in ids[0], f"with {words} row {row} is done with masks: {ids[0]}; fill it first")
                expect(all(each == ids[0] for each in ids), f"with {words} row {row} changes after it is done")

    def test_steps_stay_as_they_were(self) -> None:
        """A step that was yielded does not change when the run goes on.

        Why: histories, GIFs and tests keep steps; a view of the live canvas shows the end in every frame.

        Mend: clone the canvas and the masks into each `Step`.
        """
        steps, copies = [], []
        for step in self.make(temperature=self.temperature).stream(fresh(PROMPTS)):
            steps.append(step)
            copies.append([step.input_ids.tolist(), step.committed.tolist(), step.done.tolist()])
            expect(len(steps) < STEPS, f"the stream is not finished after {STEPS} steps")
        for step, copy in zip(steps, copies, strict=True):
            now = [step.input_ids.tolist(), step.committed.tolist(), step.done.tolist()]
            expect(now == copy, f"step {step.index} changes after it was yielded; clone its tensors")

    def test_committed_is_what_changed(self) -> None:
        """``committed`` marks the masks that a step turned into tokens: all of them, and nothing else.

        Why: it is what a display colours and what tokens-per-step figures count; proposals are not commits.

        Mend: derive ``committed`` from the same selection that writes the canvas.
        """
        for words, sampler in self.settings(self.denoiser(eos=END, pad=PAD)):
            before, was_done = start_of(PROMPTS), torch.zeros(len(PROMPTS), dtype=torch.bool)
            for step in steps_of(sampler, PROMPTS):
                for row, prompt in enumerate(PROMPTS):
                    ends_now = bool(step.done[row] and not was_done[row])  # the rest of the row may be filled
                    problem = self._commit_problem(step, before, row, len(prompt), ends_now)
                    expect(problem is None, f"step {step.index} with {words}, row {row}: {problem}")
                before, was_done = step.input_ids, step.done

    def test_nothing_is_written_twice(self) -> None:
        """Every mask is committed in exactly one step.

        Why: a sampler that rewrites tokens is another method, with other costs and guarantees; one that does so by
        mistake (stale masks, wrong rows) spoils what was sure. Re-masking samplers say ``may_remask = True``.

        Mend: select among positions that still hold a mask.
        """
        if self.may_remask:
            raise unittest.SkipTest("may_remask is declared, so positions are written several times")
        for words, sampler in self.settings():
            times = torch.stack([step.committed for step in steps_of(sampler, PROMPTS)]).sum(0)  # (B, L)
            for row, prompt in enumerate(PROMPTS):
                want = [0] * len(prompt) + [1] * NEW + [0] * (LENGTH - NEW - len(prompt))
                expect_equal(times[row].tolist(), want, f"how often row {row} is written with {words}")

    def test_counts_are_true(self) -> None:
        """Forward passes, positions, logit rows, host syncs and tokens are those that are counted from outside.

        Why: speed is compared by these numbers; a guided step that counts one pass for two, or rows that were
        projected and thrown away, make a method look faster than it is.

        Mend: count where the model is called, with the sizes of what it is given; ask by `SamplerState.told`.
        """
        guided = [{"guidance_scale": 1.0}] if self.supports_guidance else []
        for options in ({}, {"block_size": 3, "steps": 3}, {"block_size": 1}, *guided):
            denoiser = self.denoiser(eos=END, pad=PAD)
            sampler = self.make(denoiser, temperature=self.temperature, **options)
            with counted(denoiser) as counts:
                output = sampler.sample(fresh(PROMPTS))
            stats = output.stats
            expect_equal(stats.forward_passes, counts.forward_passes, f"forward_passes with {options}")
            expect_equal(stats.positions_processed, counts.positions, f"positions_processed with {options}")
            expect_equal(stats.logit_rows, counts.logit_rows, f"logit_rows with {options}")
            expect_equal(stats.host_syncs, counts.host_syncs, f"host_syncs with {options}")
            tokens = sum(map(len, completions(output, end=END)))
            expect_equal(stats.tokens, tokens, f"tokens before the end of sequence with {options}")
            expect(stats.seconds > 0, f"seconds is {stats.seconds} with {options}; measure the run")

    def _commit_problem(self, step: Step, before: torch.Tensor, row: int, prompt: int, ends: bool) -> str | None:
        """What is wrong with the commits of a row, None where nothing is."""
        length = prompt + NEW
        old, new, committed = before[row], step.input_ids[row], step.committed[row]
        if bool(committed[:prompt].any() | committed[length:].any()):
            return f"commits {committed.nonzero()[:, 0].tolist()} outside positions {prompt} to {length - 1}"
        old, new, committed = old[:length], new[:length], committed[:length]
        unmarked = (old != new) & ~committed
        explained = (old == MASK) if ends else torch.zeros_like(unmarked)
        if self.may_remask:
            explained = explained | (new == MASK)
        elif bool((committed & ((old != MASK) | (new == MASK))).any()):
            return f"{old.tolist()} -> {new.tolist()} marks {committed.tolist()}; mark masks that became tokens"
        if bool((unmarked & ~explained).any()):
            return f"{old.tolist()} -> {new.tolist()} marks only {committed.tolist()}; mark all that changed"
        return None


def expect_shapes(step: Step, words: str) -> None:
    """Raise AssertionError unless the fields of a step have the shapes and types of `Step`."""
    canvas, rows = (len(PROMPTS), LENGTH), (len(PROMPTS),)
    fields = {"input_ids": torch.int64, "committed": torch.bool, "confidence": torch.float32}
    for name, dtype in fields.items():
        value = getattr(step, name)
        expect_equal((tuple(value.shape), value.dtype), (canvas, dtype), f"{words}: shape and type of {name}")
    expect_equal((tuple(step.done.shape), step.done.dtype), (rows, torch.bool), f"{words}: shape and type of done")
    expect(isinstance(step.block, int) and step.block >= 0, f"{words}: block is {step.block!r}; count from 0")
    unknown = step.confidence[step.committed].isnan()
    expect(not bool(unknown.any()), f"{words}: confidence is nan where tokens were written; report it there")
    expect(not step.confidence.requires_grad, f"{words}: confidence holds on to the model's graph; use torch.no_grad")


def _span(steps: list[Step], row: int, block: int) -> list[int]:
    """The positions of a row that were written in a block, in order."""
    written = [step.committed[row] for step in steps if step.block == block]
    return torch.stack(written).any(0).nonzero()[:, 0].tolist()
