"""Checks of what an objective hides: where, how often, and with whose randomness.

Shapes: B batch, L length.
"""

from __future__ import annotations

import functools
import itertools
import math
import random

import numpy as np
import torch
from torch import Tensor

from dllm_core.conformance.expect import expect, expect_equal, expect_refused
from dllm_core.conformance.objective_suite import (
    LENGTH,
    ObjectiveSuite,
    plain,
    ragged,
    tensors_of,
    to_learn,
)
from dllm_core.conformance.sampler_chance import process_seed
from dllm_core.conformance.suite import requires
from dllm_core.errors import DataError
from dllm_core.noise import Corruption

SEEDS = range(20)
ROWS = 4000
SIGMAS = 4.5  # of a normal law: 7 in a million


class NoiseChecks(ObjectiveSuite):
    """Where, how often and by whose randomness tokens are hidden."""

    def test_randomness_is_the_generators_alone(self) -> None:
        """``corrupt`` draws from the generator that it is given and from nothing else.

        Why: the trainer keys its generators by seed, step and process; noise from the process's own generators is the
        same on every device, is lost on resuming, and moves evaluation and dropout.

        Mend: pass ``generator=generator`` to every draw, on ``generator.device``.
        """
        objective, denoiser, batch = self.make(), self.learner(), ragged()
        corruptions = []
        for state in (1, 2):
            with process_seed(state):
                before = global_states()
                corruptions.append(self.draw(objective, batch, denoiser, seed=5))
                expect(global_states() == before, "corrupt moves the process's generators; draw from the one given")
        first, second = corruptions
        expect(same(first, second), "the same seed hides otherwise when the process's generators stand elsewhere")
        others = [self.draw(objective, batch, denoiser, seed=seed) for seed in SEEDS]
        expect(any(not same(first, other) for other in others), "20 seeds give one corruption; use the generator")
        generator = torch.Generator().manual_seed(5)
        twice = [objective.corrupt(batch, denoiser, generator=generator) for _ in range(2)]
        expect(not same(*twice), "two corruptions from one generator are the same; draw from it, do not copy it")

    def test_times_lie_in_their_range(self) -> None:
        """Every sequence has its own time, between the lowest time and 1.

        Why: at time 0 the weight of the bound is infinite; one time for a whole batch multiplies the variance of the
        gradient by the batch size.

        Mend: draw with `dllm_core.noise.sample_time`, one time a row.
        """
        objective = self.make()
        time = self.draw(objective, plain(ROWS), self.learner()).time
        lowest = self.lowest_time(objective)
        expect(time.is_floating_point() and len(time) == ROWS, f"times are {time.dtype} {tuple(time.shape)}; one a row")
        low, high = float(time.min()), float(time.max())
        # float32 rounds the lowest time, perhaps downwards
        inside = lowest - 1e-6 <= low and high <= 1
        expect(inside, f"times run from {low:.4g} to {high:.4g}, the range is {lowest} to 1; draw within it")
        distinct = len(time.unique())
        expect(distinct > 0.9 * ROWS, f"{ROWS} sequences share {distinct} times; draw one for each")

    @requires("masks_tokens")
    def test_hidden_tokens_are_masks_and_others_stay(self) -> None:
        """Where ``masked`` is set stands the mask token, everywhere else the token of the batch.

        Why: a hidden token that can still be read gives a loss near zero and a model that learns to copy.

        Mend: build the corruption with `dllm_core.noise.apply_mask`.
        """
        objective, denoiser = self.make(), self.learner()
        for batch in (ragged(), plain()):
            for seed in SEEDS:
                corruption = self.draw(objective, batch, denoiser, seed=seed)
                kinds = (corruption.masked.dtype, corruption.input_ids.dtype)
                expect_equal(kinds, (torch.bool, torch.int64), "dtypes of masked and input_ids")
                want = batch["input_ids"].masked_fill(corruption.masked, denoiser.mask_token_id)
                expect_equal(corruption.input_ids, want, f"input_ids of the corruption of seed {seed}")

    @requires("masks_tokens")
    def test_ignored_tokens_are_never_hidden(self) -> None:
        """Tokens with label -100 and padding stay as they are, whatever the time.

        Why: a hidden prompt is a question that the model cannot read; hidden padding is counted as text.

        Mend: hide only where `dllm_core.objectives.base.maskable_positions` says so.
        """
        objective, denoiser, batch = self.make(), self.learner(), ragged()
        for seed in SEEDS:
            hidden = self.draw(objective, batch, denoiser, seed=seed).masked & ~to_learn(batch)
            where = hidden.nonzero().tolist()
            expect(not where, f"seed {seed} hides ignored tokens at (row, column) {where}; leave them")

    def test_without_labels_every_real_token_is_learned(self) -> None:
        """A batch without labels is one whose labels are its tokens; an attention mask may be bool or 0 and 1.

        Why: pretraining data has no labels; a corruption or count that differs then trains on something else.

        Mend: take the positions from `dllm_core.objectives.base.maskable_positions`.
        """
        objective, denoiser, batch = self.make(), self.learner(), ragged()
        del batch["labels"]
        labelled = batch | {"labels": batch["input_ids"].clone()}
        as_bool = batch | {"attention_mask": batch["attention_mask"].bool()}
        want = self.draw(objective, batch, denoiser)
        count = int(objective.loss(denoiser, batch, want).token_count)
        expect_equal(count, int(to_learn(batch).sum()), "tokens counted without labels")
        for other, what in ((labelled, "labels that are its tokens"), (as_bool, "a bool attention mask")):
            got = self.draw(objective, other, denoiser)
            expect(same(got, want), f"a batch with {what} is hidden otherwise; it says the same")
            losses = [float(objective.loss(denoiser, each, want).loss.detach()) for each in (other, batch)]
            expect_equal(losses[0], losses[1], f"loss with {what} and without")

    def test_misshapen_batches_are_refused(self) -> None:
        """Labels that do not fit the tokens raise DataError and are named.

        Why: a column of labels broadcasts against the tokens without a word, and the loss learns the wrong positions.

        Mend: `dllm_core.objectives.base.maskable_positions` checks the shapes.
        """
        objective, denoiser, batch = self.make(), self.learner(), plain()
        for labels in (batch["input_ids"][:, :1], batch["input_ids"][:, 1:]):
            bad = batch | {"labels": labels}
            draw = functools.partial(self.draw, objective, bad, denoiser)
            expect_refused(draw, DataError, "labels", f"labels shaped {tuple(labels.shape)}")

    @requires("hides_independently")
    def test_times_are_uniform(self) -> None:
        """Times are spread evenly between the lowest time and 1 (Kolmogorov and Smirnov's test).

        Why: the weights of the bound hold for uniform times; others tilt it towards early or late steps.

        Mend: ``epsilon + (1 - epsilon) * uniform``; put other laws into a weighting, and say
        ``hides_independently = False`` for an objective that needs them.
        """
        objective = self.make()
        lowest = self.lowest_time(objective)
        time = self.draw(objective, plain(ROWS), self.learner()).time.double().sort().values
        even = lowest + (1 - lowest) * (torch.arange(ROWS) + 0.5) / ROWS
        distance = float((time - even).abs().max()) / (1 - lowest)
        # 2.3 / sqrt(n) is exceeded by chance 5 times in 100 000
        bound = 2.3 / math.sqrt(ROWS)
        expect(distance < bound, f"times stray by {distance:.3f} from even, chance allows {bound:.3f}; draw uniformly")

    @requires("hides_independently")
    def test_masking_follows_the_schedule(self) -> None:
        """Each token is hidden with probability 1 - alpha(time), at every position, time, and apart from the others.

        Why: a rate that is off (alpha for 1 - alpha, a count that is rounded, one draw for a row) is a loss that looks
        right and weighs every step wrongly.

        Mend: compare an own draw a token with 1 - alpha(time), as `dllm_core.noise.mask_tokens` does.
        """
        objective = self.make()
        corruption = self.draw(objective, plain(ROWS), self.learner())
        rate = (1 - self.schedule(objective).alpha(corruption.time.double()))[:, None]  # (B, 1)
        excess = corruption.masked.double() - rate  # (B, L), mean 0
        variance = (rate * (1 - rate)).expand_as(excess)
        slices = [(slice(None), slice(None), "in all")]
        slices += [(slice(None), column, f"at position {column}") for column in range(LENGTH)]
        quarters = corruption.time.argsort().chunk(4)
        slices += [(rows, slice(None), f"in quarter {number} of the times") for number, rows in enumerate(quarters, 1)]
        for rows, columns, where in slices:
            got, spread = excess[rows, columns].sum(), variance[rows, columns].sum().sqrt()
            expect_normal(got / spread, f"tokens hidden {where} beyond 1 - alpha(time)")
        for left, right in itertools.combinations(range(LENGTH), 2):
            got = (excess[:, left] * excess[:, right]).sum()
            spread = (variance[:, left] * variance[:, right]).sum().sqrt()
            expect_normal(got / spread, f"positions {left} and {right} hidden together beyond chance")


def expect_normal(deviations: Tensor, what: str) -> None:
    """Raise AssertionError unless a number of standard deviations is small enough to be chance."""
    size = float(deviations)
    expect(abs(size) < SIGMAS, f"{what}: {size:+.1f} standard deviations; hide each token with 1 - alpha(time)")


def same(first: Corruption, second: Corruption) -> bool:
    """Whether two corruptions hold the same tensors."""
    one, other = tensors_of(first), tensors_of(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def global_states() -> list[object]:
    """Where the process's own generators stand."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the one that is watched
    return [torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), rest]
