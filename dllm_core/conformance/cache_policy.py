"""`CachePolicyTests`: what every cache policy must hold, by itself and inside the sampling loop.

Shapes: B rows, L canvas length, M open positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from dllm_core.conformance.counting import counted
from dllm_core.conformance.expect import expect, expect_close, expect_equal
from dllm_core.conformance.part_suite import PartSuite
from dllm_core.conformance.sampler_suite import CANVASES, MASK, PAD, PROMPTS, STEPS, fresh, start_of, steps_of, texts
from dllm_core.conformance.suite import requires
from dllm_core.errors import OptionError
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers import CachePolicy, NoCache

SETTINGS: tuple[dict[str, object], ...] = (
    {"block_size": 3},
    {"block_size": 1},
    {"block_size": None, "steps": 2},
    {"block_size": 3, "temperature": 1.0, "confidence": "random"},
    {"block_size": 3, "guidance_scale": 1.0},
    {"block_size": 1, "temperature": 1.0, "stop_at_eos": True},  # rows end at different steps
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

    def ask(
        self, policy: CachePolicy, denoiser: Denoiser, ids: Tensor, mask: Tensor | None, at: Tensor
    ) -> tuple[Tensor, int]:
        """The first answer of a policy in a run, and its count of positions."""
        with torch.no_grad():
            return policy.logits(denoiser, ids, mask, at)

    def test_the_first_answer_is_a_full_forward(self) -> None:
        """Before anything is cached, the logits are those of the model: (B, M, V), rows as the positions asked for.

        Why: rows of other positions, or of the whole block instead of those open, are what the loop writes tokens from.

        Mend: return ``denoiser.logits(..., at=at)``, or select the same rows from what was computed.
        """
        denoiser, (ids, mask, at) = self.denoiser(), ragged()
        logits, positions = self.ask(self.make(), denoiser, ids, mask, at)
        want = denoiser.logits(ids, mask, at=at).detach()
        expect_equal(tuple(logits.shape), tuple(want.shape), "shape (rows, open positions, vocabulary)")
        expect_close(logits, want, "the first answer and a full forward", tolerance=self.tolerance)
        is_count = isinstance(positions, int) and positions > 0
        expect(is_count, f"the count of positions is {positions!r}; count on the host, in whole numbers")

    def test_counts_are_true(self) -> None:
        """The positions that a policy reports are those that went through the model.

        Why: saved positions are the whole point of a cache; a count of the block where the model computed the canvas
        is a speed-up on paper.

        Mend: count the ids that the model is given, padding and recomputed neighbours included.
        """
        for options in SETTINGS:
            denoiser = self.denoiser()
            sampler = self.sampler(self.make(), denoiser, **options)
            with counted(denoiser) as counts:
                stats = sampler.sample(fresh(PROMPTS)).stats
            got = (stats.forward_passes, stats.positions_processed, stats.logit_rows)
            want = (counts.forward_passes, counts.positions, counts.logit_rows)
            expect_equal(got, want, f"forward passes, positions and logit rows with {options}")

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

        Mend: keep positions and valid lengths per row.
        """
        for options in SETTINGS:
            denoiser = self.denoiser()
            together = texts(self.sampler(self.make(), denoiser, **options).sample(fresh(PROMPTS)))
            alone = [texts(self.sampler(self.make(), denoiser, **options).sample([list(p)]))[0] for p in PROMPTS]
            expect_equal(together, alone, f"rows in a batch and alone with {options}")

    def test_padding_is_not_seen(self) -> None:
        """What stands in padded columns changes no logits of real ones.

        Why: a policy that loses the attention mask lets short rows read the padding of long ones.

        Mend: pass ``attention_mask`` on, for cached positions too.
        """
        denoiser, (ids, mask, at) = self.denoiser(), ragged()
        first, second = (
            self.ask(self.make(), denoiser, ids.masked_fill(~mask, filler), mask, at)[0] for filler in (PAD, PAD + 1)
        )
        expect_close(second, first, "logits with one filler and with another", tolerance=self.tolerance)

    def test_positions_are_the_rows_own(self) -> None:
        """A row that is padded on the left gets the logits that it gets without padding.

        Why: positions counted by columns instead of by real tokens rotate keys by the padding's length; a published
        cache overwrites position_ids with arange.

        Mend: take positions from the attention mask, as `Denoiser.logits` does where none are given.
        """
        denoiser = self.denoiser()
        ids = torch.tensor([[1, 0, MASK, MASK]])
        at = torch.tensor([[2, 3]])
        want, _ = self.ask(self.make(), denoiser, ids, None, at)
        padded = torch.cat([torch.full((1, 2), PAD), ids], 1)
        mask = torch.arange(6)[None] >= 2
        got, _ = self.ask(self.make(), denoiser, padded, mask, at + 2)
        expect_close(got, want, "logits with two columns of padding on the left and without", tolerance=self.tolerance)

    def test_needs_kv_cache_is_true(self) -> None:
        """A policy that declares ``needs_kv_cache`` brings a cache to the model, and no other does.

        Why: the declaration decides on which families a policy is offered; a wrong one crashes in the middle of a
        run, or hides the policy from families that could use it.

        Mend: declare what ``logits`` passes as ``cache=``.
        """
        declared = self.load_component().needs_kv_cache
        denoiser = self.denoiser()
        sampler = self.sampler(self.make(), denoiser, block_size=3)
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

        Mend: keep nothing on the policy; a frozen dataclass with a mutable field is not frozen.
        """
        first, second = [[2, 1, 0]], [[0, 2, 1]]  # of one shape, so that anything kept fits the other run
        want = [texts(self.sampler(self.make(), block_size=3).sample(fresh(prompts))) for prompts in (first, second)]
        sampler = self.sampler(self.make(), block_size=3)
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
        denoiser, inputs = self.denoiser(), ragged()
        before = [each.clone() for each in (*inputs, *denoiser.model.state_dict().values())]
        self.ask(self.make(), denoiser, *inputs)
        now = [*inputs, *denoiser.model.state_dict().values()]
        names = ["input_ids", "attention_mask", "at", *(f"weight {name}" for name in denoiser.model.state_dict())]
        for name, value, old in zip(names, now, before, strict=True):
            expect_equal(value, old, f"{name} after a call")

    def test_every_block_ends(self) -> None:
        """Inside the sampling loop no mask is left, whatever the step budget and block size.

        Why: cached loops that skip the first or last step of a block leave masks (NVlabs/Fast-dLLM issue 54).

        Mend: answer every call of ``logits``; which positions are open is the loop's business.
        """
        for options in SETTINGS:
            sampler = self.sampler(self.make(), **options)
            output = sampler.sample(fresh(PROMPTS))
            expect_equal(steps_of(sampler, PROMPTS)[-1].input_ids, output.sequences, f"stream and sample, {options}")
            rows = texts(output)
            expect(not any(MASK in row for row in rows), f"masks are left with {options}: {rows}; answer every call")

    def _expect_no_cache(self, own: Mapping[str, object]) -> None:
        for options in SETTINGS:
            denoiser = self.denoiser()
            parts = (self.make(**own), NoCache())
            runs = [steps_of(self.sampler(part, denoiser, **options), PROMPTS) for part in parts]
            expect_equal(len(runs[0]), len(runs[1]), f"number of steps with {options} and without a cache")
            for cached, plain in zip(*runs, strict=True):
                words = f"step {plain.index} with {options} and without a cache"
                expect_equal(cached.input_ids, plain.input_ids, f"canvas after {words}")
                expect_close(cached.confidence, plain.confidence, f"confidence in {words}", tolerance=self.tolerance)
            got, want = (texts(self.sampler(part, denoiser, **options).infill(fresh(CANVASES))) for part in parts)
            expect_equal(got, want, f"infilled canvases with {options} and without a cache")


def ragged() -> tuple[Tensor, Tensor, Tensor]:
    """A canvas (B, L), its attention mask (B, L) and open positions (B, M) of rows of unequal length."""
    lengths = torch.tensor([[len(prompt) + 2] for prompt in PROMPTS])
    ids = start_of(PROMPTS, 2)
    mask = torch.arange(ids.shape[1]) < lengths
    return ids.masked_fill(~mask, PAD), mask, torch.cat([lengths - 2, lengths - 1], 1)
