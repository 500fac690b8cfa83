"""`CachePolicyTests`: what every cache policy must hold, by itself and inside the sampling loop.

Shapes: B rows, L canvas length, M open positions, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from dllm_core.conformance.counting import counted
from dllm_core.conformance.deep import deep_denoiser
from dllm_core.conformance.expect import expect, expect_close, expect_equal
from dllm_core.conformance.part_suite import PartSuite
from dllm_core.conformance.sampler_suite import (
    CANVASES,
    END,
    LENGTH,
    MASK,
    NEW,
    PAD,
    PROMPTS,
    STEPS,
    VOCAB,
    fresh,
    steps_of,
    texts,
)
from dllm_core.conformance.suite import requires
from dllm_core.errors import OptionError
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers import BD3LMSampler, CachePolicy, MDLMSampler, NoCache, Sampler, View, planning
from dllm_core.samplers.cache import CacheRun
from dllm_core.samplers.state import open_positions
from dllm_core.samplers.view import BLOCK_CAUSAL, FULL, Answer

SAMPLERS: dict[str, type[Sampler]] = {FULL: MDLMSampler, BLOCK_CAUSAL: BD3LMSampler}
SETTINGS: tuple[dict[str, object], ...] = (
    {"block_size": 3},
    {"block_size": 1},
    {"block_size": None, "steps": 2},
    {"block_size": 3, "temperature": 1.0, "confidence": "random"},
    {"block_size": 3, "guidance_scale": 1.0},
    {"block_size": 1, "temperature": 1.0, "stop_at_eos": True},  # rows end at different steps
    {"block_size": 1, "suffix_window": 1},
)


class CachePolicyTests(PartSuite):
    """The checks of a cache policy; a subclass names it and declares what it can do.

    Attributes:
        exact: gives the logits of no cache at every step.
        refresh_options: options with which every step computes everything anew, ``{"refresh_every": 1}``.
        tolerance: by how much equal logits and confidences may differ, relative and absolute.

    Example:
        >>> class TestDual(CachePolicyTests):
        ...     component = "acme/dual"
        ...     refresh_options = {"refresh_every": 1}
    """

    kind = "cache policy"
    part = "cache"
    base_class = CachePolicy
    exact: ClassVar[bool] = False
    refresh_options: ClassVar[Mapping[str, object]] = {}
    tolerance: ClassVar[float] = 1e-6

    def deep_denoiser(self, shifted: bool) -> Denoiser:
        """A model of several layers: what it keeps of a position tells what that position could see."""
        return deep_denoiser(VOCAB, LENGTH, eos=END, pad=PAD, shifted=shifted)

    def attentions(self) -> tuple[str, ...]:
        """The kinds of attention that the policy serves."""
        return self.load_component().serves

    def runs(self) -> Iterator[tuple[str, dict[str, object]]]:
        """Kinds of attention and options of a sampler, to run the policy with."""
        for kind in self.attentions():
            for options in SETTINGS:
                if kind == FULL or "suffix_window" not in options:  # blocks that look back see nothing behind them
                    yield kind, dict(options)

    def sampler(self, part: object, denoiser: Denoiser | None = None, kind: str = FULL, **options: object) -> Sampler:
        """The core's sampler with that kind of attention, and with that policy in it."""
        chosen = {"max_new_tokens": NEW, "stop_at_eos": False, "cache": "none"} | options
        sampler = SAMPLERS[kind](self.denoiser() if denoiser is None else denoiser, **chosen)
        sampler.cache = part
        return sampler

    def open(self, policy: CachePolicy, denoiser: Denoiser, kind: str, **options: object) -> tuple[CacheRun, View]:
        """A run of a ragged batch that was just begun, and its first step."""
        state = self.sampler(policy, denoiser, kind, **({"max_new_tokens": 2} | options)).start(fresh(PROMPTS))
        ids, block = planning.current_ids(state), state.block
        at, _ = open_positions(ids, block, block.open_counts[0], MASK)
        return state.cache, View(block.layout, 0, ids, at)

    def ask(self, run: CacheRun, view: View) -> Answer:
        """The answer of a policy to a step."""
        with torch.no_grad():
            return run.logits(view)

    def test_the_first_answer_is_a_full_forward(self) -> None:
        """Before anything is cached, the logits are those of the model: (B, M, V), rows as the positions asked for.

        Why: rows of other positions, or of the whole block instead of those open, are what the loop writes tokens from.

        Mend: return ``denoiser.logits(..., at=at)``, or select the same rows from what was computed.
        """
        for kind in self.attentions():
            denoiser = self.denoiser()
            run, view = self.open(self.make(), denoiser, kind)
            answer = self.ask(run, view)
            want = full_forward(denoiser, view)
            expect_equal(tuple(answer.logits.shape), tuple(want.shape), "shape (rows, open positions, vocabulary)")
            words = f"the first answer and a full forward with {kind} attention"
            expect_close(answer.logits, want, words, tolerance=self.tolerance)
            counts = answer[1:4]
            good = all(isinstance(count, int) and count > 0 for count in counts)
            expect(good, f"positions, logit rows and passes are {counts}; count on the host, in whole numbers")

    def test_counts_are_true(self) -> None:
        """The positions that a policy reports are those that went through the model.

        Why: saved positions are the whole point of a cache; a count of the block where the model computed the canvas
        is a speed-up on paper.

        Mend: count the ids that the model is given, padding and recomputed neighbours included; plan on the host, from
        the canvas and the step's number, and ask the device nothing, or say how often (`Answer.host_syncs`).
        """
        for kind, options in self.runs():
            denoiser = self.denoiser()
            sampler = self.sampler(self.make(), denoiser, kind, **options)
            with counted(denoiser) as counts:
                stats = sampler.sample(fresh(PROMPTS)).stats
            got = (stats.forward_passes, stats.positions_processed, stats.logit_rows, stats.host_syncs)
            want = (counts.forward_passes, counts.positions, counts.logit_rows, counts.host_syncs)
            expect_equal(got, want, f"passes, positions, logit rows and host syncs with {kind} attention, {options}")

    @requires("exact")
    def test_every_step_is_that_of_no_cache(self) -> None:
        """Every step writes the same tokens, with the same confidence, as without a cache.

        Why: a stale cache, keys without their rotation, or a block that is off by one give fluent, wrong text.

        Mend: compare the logits step by step; declare ``exact = False`` for a policy that approximates.
        """
        self._expect_no_cache({})

    @requires("refresh_options")
    def test_refreshing_every_step_is_no_cache(self) -> None:
        """With a refresh at every step an approximation becomes exact.

        Why: it is the one setting in which the right answer is known, and it walks through all of the policy's code.

        Mend: compare the logits of the first step that differs; look at positions, masks and the rows selected.
        """
        self._expect_no_cache(self.refresh_options)

    def test_a_row_is_the_same_alone_and_in_any_batch(self) -> None:
        """A ragged batch gives each row what it gets alone.

        Why: Fast-dLLM's caches take equal prompts or batch 1 only, and its attention drops the mask of padded rows
        (NVlabs/Fast-dLLM issues 7 and 64); rows of one batch stand at different blocks.

        Mend: keep positions and valid lengths per row; in ``keep`` forget the rows that are finished.
        """
        for kind, options in self.runs():
            denoiser = self.denoiser()
            together = texts(self.sampler(self.make(), denoiser, kind, **options).sample(fresh(PROMPTS)))
            alone = [texts(self.sampler(self.make(), denoiser, kind, **options).sample([list(p)]))[0] for p in PROMPTS]
            expect_equal(together, alone, f"rows in a batch and alone with {kind} attention, {options}")

    def test_padding_is_not_seen(self) -> None:
        """What stands in padded columns changes no logits of real ones.

        Why: a policy that loses the attention mask lets short rows read the padding of long ones.

        Mend: pass the attention mask on, for cached positions too (`Layout.attention_mask`, `Layout.pattern`).
        """
        for kind in self.attentions():
            answers = []
            for filler in (PAD, PAD + 1):
                run, view = self.open(self.make(), self.denoiser(), kind)
                padding = ~view.layout.attention_mask
                answers.append(self.ask(run, replace(view, input_ids=view.input_ids.masked_fill(padding, filler))))
            words = f"logits with one filler and with another, {kind} attention"
            expect_close(answers[1].logits, answers[0].logits, words, tolerance=self.tolerance)

    def test_memory_is_stated(self) -> None:
        """``cache_bytes``, known before the first step, is what the caches that the model gets take in the end.

        Why: a cache of a long canvas is larger than the model's activations; who is told only by an out-of-memory
        error cannot choose a smaller batch beforehand.

        Mend: set ``cache_bytes`` when the run is opened (`dllm_core.models.cache.BlockCache.bytes_needed`).
        """
        for kind in self.attentions():
            denoiser = self.denoiser()
            sampler = self.sampler(self.make(), denoiser, kind, block_size=3)
            state = sampler.start(fresh(PROMPTS))
            stated = state.cache.cache_bytes
            with counted(denoiser) as counts:
                while not state.finished:
                    sampler.step(state)
            expect_equal(stated, counts.cache_bytes, f"cache_bytes with {kind} attention, and the bytes that are kept")
            expect_equal(sampler.finish(state).stats.cache_bytes, stated, "cache_bytes in the counts of the run")

    def test_needs_kv_cache_is_true(self) -> None:
        """A policy that declares ``needs_kv_cache`` brings a cache to the model, and no other does.

        Why: the declaration decides on which families a policy is offered; a wrong one crashes in the middle of a
        run, or hides the policy from families that could use it.

        Mend: declare what ``logits`` passes as ``cache=``.
        """
        declared = self.load_component().needs_kv_cache
        denoiser = self.denoiser()
        sampler = self.sampler(self.make(), denoiser, self.attentions()[0], block_size=3)
        with counted(denoiser) as counts:
            try:
                sampler.sample(fresh(PROMPTS))
            except OptionError as error:
                raise AssertionError(f"needs_kv_cache = {declared}, and the run ends: {error}") from error
        uses = counts.with_cache > 0
        expect(uses == declared, f"needs_kv_cache = {declared}, but {counts.with_cache} calls bring a cache; say so")

    def test_runs_do_not_mix(self) -> None:
        """One policy serves several runs, one after the other and side by side.

        Why: a cache that outlives its run answers the next prompt with the last one's keys.

        Mend: keep nothing on the policy but on the `CacheRun` that ``start`` makes; a frozen dataclass with a mutable
        field is not frozen.
        """
        first, second = [[2, 1, 0]], [[0, 2, 1]]  # of one shape, so that anything kept fits the other run
        options = {"kind": self.attentions()[0], "block_size": 3}
        want = [texts(self.sampler(self.make(), **options).sample(fresh(prompts))) for prompts in (first, second)]
        sampler = self.sampler(self.make(), **options)
        states = [sampler.start(fresh(prompts)) for prompts in (first, second)]
        for _ in range(STEPS):
            for state in states:
                if not state.finished:
                    sampler.step(state)
        got = [texts(sampler.finish(state)) for state in states]
        expect_equal(got, want, "two runs side by side, and each alone")
        expect_equal(texts(sampler.sample(fresh(first))), want[0], "a third run, and a fresh one")

    def test_inputs_are_not_changed(self) -> None:
        """Canvas, attention mask and positions are as they were, and so are the model's weights.

        Why: the loop goes on with the canvas that it handed over.

        Mend: clone before you write.
        """
        for kind in self.attentions():
            denoiser = self.denoiser()
            run, view = self.open(self.make(), denoiser, kind)
            weights = {f"weight {name}": value for name, value in denoiser.model.state_dict().items()}
            shown = {"input_ids": view.input_ids, "at": view.at, "attention_mask": view.layout.attention_mask}
            before = {name: value.clone() for name, value in (shown | weights).items()}
            self.ask(run, view)
            for name, value in (shown | weights).items():
                expect_equal(value, before[name], f"{name} after a call with {kind} attention")

    def test_every_block_ends(self) -> None:
        """Inside the sampling loop no mask is left, whatever the step budget and block size.

        Why: cached loops that skip the first or last step of a block leave masks (NVlabs/Fast-dLLM issue 54).

        Mend: answer every call of ``logits``; which positions are open is the loop's business.
        """
        for kind, options in self.runs():
            sampler = self.sampler(self.make(), kind=kind, **options)
            output = sampler.sample(fresh(PROMPTS))
            expect_equal(steps_of(sampler, PROMPTS)[-1].input_ids, output.sequences, f"stream and sample, {options}")
            rows = texts(output)
            expect(not any(MASK in row for row in rows), f"masks are left with {options}: {rows}; answer every call")

    def _expect_no_cache(self, own: Mapping[str, object]) -> None:
        for kind, options in self.runs():
            # Greedy runs are enough for the deep model, whose forward passes take longer.
            depths = (False,) if options.get("temperature") else (False, True)
            for shifted, is_deep in itertools.product((False, True), depths):
                denoiser = self.deep_denoiser(shifted) if is_deep else self.denoiser(shifted=shifted)
                samplers = [self.sampler(part, denoiser, kind, **options) for part in (self.make(**own), NoCache())]
                words = f"{kind} attention, {options}, {'right-shifted' if shifted else 'plain'} logits"
                words += " of a deep model" if is_deep else ""
                self._expect_equal_runs(*samplers, words)

    def _expect_equal_runs(self, sampler: Sampler, plain_sampler: Sampler, words: str) -> None:
        runs = [steps_of(each, PROMPTS) for each in (sampler, plain_sampler)]
        expect_equal(len(runs[0]), len(runs[1]), f"number of steps with and without the cache, {words}")
        for cached, plain in zip(*runs, strict=True):
            where = f"step {plain.index} with and without the cache, {words}"
            expect_equal(cached.input_ids, plain.input_ids, f"canvas after {where}")
            expect_close(cached.confidence, plain.confidence, f"confidence in {where}", tolerance=self.tolerance)
        got, want = (texts(each.infill(fresh(CANVASES))) for each in (sampler, plain_sampler))
        expect_equal(got, want, f"infilled canvases with and without the cache, {words}")


def full_forward(denoiser: Denoiser, view: View) -> Tensor:
    """Logits (B, M, V) at the open positions: row by row, with a pattern that is spelled out position by position."""
    rows, layout = [], view.layout
    for row, length in enumerate(layout.lengths):
        pattern = None
        if layout.attention == BLOCK_CAUSAL:
            blocks = [(position - int(layout.origins[row])) // layout.block_size for position in range(length)]
            pattern = torch.tensor([[[[key <= query for key in blocks] for query in blocks]]])
        with torch.no_grad():
            logits = denoiser.logits(view.input_ids[row : row + 1, :length], attention=pattern)
        rows.append(logits[0, view.at[row].clamp(max=length - 1)])
    return torch.stack(rows)
