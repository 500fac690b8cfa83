"""Checks of a sampler's randomness: where it comes from, what it may depend on, and that it is the model's own.

Shapes: B rows, L canvas length, V vocabulary, D length of the toy's joint.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dllm_core.conformance.chi_square import expect_fit
from dllm_core.conformance.expect import expect, expect_equal, expect_refused
from dllm_core.conformance.sampler_suite import (
    CANVASES,
    END,
    LENGTH,
    MASK,
    PAD,
    PROMPTS,
    STEPS,
    VOCAB,
    SamplerSuite,
    fresh,
    texts,
)
from dllm_core.conformance.suite import requires
from dllm_core.conformance.toy import random_joint
from dllm_core.errors import OptionError


class ChanceChecks(SamplerSuite):
    """Where a sampler's randomness comes from, and what it may depend on."""

    @requires("deterministic_at_zero")
    def test_temperature_0_ignores_the_seed(self) -> None:
        """At ``temperature=0`` the seed changes nothing.

        Why: greedy results are compared across machines and versions; noise that is added anyway makes every
        comparison a matter of luck.

        Mend: draw only where temperature is above 0.
        """
        for block_size in (3, None):
            first, *others = (
                self._texts(PROMPTS, block_size=block_size, temperature=0.0, seed=seed) for seed in (0, 1, 2)
            )
            expect_equal(others, [first, first], f"texts at temperature 0 of seeds 1, 2 and 0, block_size={block_size}")

    def test_same_seed_gives_the_same_texts(self) -> None:
        """The seed alone decides, whatever state the process's own random numbers are in.

        Why: samplers without a seed of their own are repeatable only while nothing else draws (the published
        samplers take none, only a global set_seed).

        Mend: draw with `Sampler.noise` or from a generator that is made from ``seed``.
        """
        results = []
        for state in (11, 12):
            with process_seed(state):
                results.append(self._texts(PROMPTS, block_size=3, temperature=self.temperature, seed=5))
        expect_equal(results[1], results[0], "texts of the same seed in another state of the global generators")

    @requires("supports_temperature")
    def test_other_seeds_give_other_texts(self) -> None:
        """At ``temperature=1`` different seeds give different texts, and so do copies of a prompt in one batch.

        Why: a seed that never reaches the noise gives one answer a thousand times; votes and pass@k are then worthless.

        Mend: make the row's noise key from its seed, and from how many equal rows stand before it.
        """
        results = [self._texts(PROMPTS, temperature=1.0, seed=seed) for seed in range(6)]
        expect(any(each != results[0] for each in results), f"six seeds give one result: {results[0]}; use the seed")
        copies = self._texts([PROMPTS[0]] * 8, temperature=1.0)
        expect(any(each != copies[0] for each in copies), f"eight copies of a prompt get one text: {copies[0]}")

    def test_every_row_may_have_its_own_seed(self) -> None:
        """A list of seeds gives each row what it gets alone with its seed; a list of another length is refused.

        Why: servers batch requests with seeds of their own; the batch must not change what a seed means.

        Mend: read ``seed`` as one int for all rows or one a row (`dllm_core.samplers.planning.row_keys`).
        """
        seeds = [5, 6, 7]
        together = self._texts(PROMPTS, temperature=self.temperature, seed=seeds)
        pairs = zip(PROMPTS, seeds, strict=True)
        alone = [self._texts([prompt], temperature=self.temperature, seed=seed)[0] for prompt, seed in pairs]
        expect_equal(together, alone, f"rows with seeds {seeds}, and alone")
        sample = functools.partial(self._texts, PROMPTS, seed=seeds[:2])
        expect_refused(sample, OptionError, "seed", "two seeds for three prompts")

    def test_global_random_numbers_are_left_alone(self) -> None:
        """Sampling neither seeds nor draws from the generators of the process.

        Why: a sampler that calls torch.manual_seed inside a training run repeats the same noise in every evaluation.

        Mend: take randomness as an argument; never call torch.manual_seed, torch.rand without generator, or random.
        """
        sampler = self.make(temperature=self.temperature)
        with process_seed(13):
            before = torch.get_rng_state(), random.getstate()
            sampler.sample(fresh(PROMPTS))
            expect(
                torch.equal(torch.get_rng_state(), before[0]), "sampling moves torch's global generator; use your own"
            )
            expect(random.getstate() == before[1], "sampling moves Python's global generator; draw elsewhere")

    def test_a_row_is_the_same_alone_and_in_any_batch(self) -> None:
        """A ragged batch gives each row what it gets alone, at any temperature.

        Why: published samplers drop the attention mask of padded rows, or refuse unequal prompts (NVlabs/Fast-dLLM
        issue 7), so that accuracy depends on the batch size.

        Mend: hand the row mask to `Denoiser.logits`, count quotas per row, and key noise by the row, not by its number.
        """
        denoiser = self.denoiser(eos=END, pad=PAD)
        whole = {"max_length": LENGTH, "block_size": None, "schedule": "cosine", "temperature": self.temperature}
        unequal = [(f"max_length={LENGTH}, seed={seed}", self.make(denoiser, **whole, seed=seed)) for seed in range(4)]
        for words, sampler in (*self.settings(denoiser), *unequal):
            together = texts(sampler.sample(fresh(PROMPTS)))
            alone = [texts(sampler.sample([list(prompt)]))[0] for prompt in PROMPTS]
            expect_equal(together, alone, f"rows in a batch and alone with {words}")

    @requires("supports_infill")
    def test_a_canvas_is_the_same_alone_and_in_any_batch(self) -> None:
        """Infilling a ragged batch gives each canvas what it gets alone, in families with and without a right shift.

        Why: where rows have unequal numbers of masks, filler slots point at real positions; where it is ranked or
        written like one, it changes the rows with fewer masks.

        Mend: leave filler out of every maximum and every write (``masked`` in `CommitRule.select`).
        """
        canvases = [*CANVASES, [MASK, MASK, 0, 0], [MASK] * LENGTH]
        for shifted, temperature in itertools.product({False, self.supports_shifted_logits}, {0.0, self.temperature}):
            denoiser = self.denoiser(eos=END, pad=PAD, shifted=shifted)
            for block_size in (3, None):
                sampler = self.make(denoiser, block_size=block_size, temperature=temperature)
                together = texts(sampler.infill(fresh(canvases)))
                alone = [texts(sampler.infill([list(canvas)]))[0] for canvas in canvases]
                words = f"block_size={block_size}, temperature={temperature}, shifted={shifted}"
                expect_equal(together, alone, f"canvases in a batch and alone with {words}")

    def test_the_order_of_rows_is_irrelevant(self) -> None:
        """Prompts in another order give the same rows in that order.

        Why: batches are sorted by length for speed; a result that depends on a row's number, or comes back in the
        wrong place, gives one prompt's answer to another.

        Mend: key noise by the row's own tokens and seed; keep rows in the order they came in.
        """
        sampler = self.make(self.denoiser(pad=PAD), block_size=3, temperature=self.temperature)
        want = texts(sampler.sample(fresh(PROMPTS)))
        for order in itertools.permutations(range(len(PROMPTS))):
            got = texts(sampler.sample([list(PROMPTS[row]) for row in order]))
            expect_equal(got, [want[row] for row in order], f"rows of a batch in the order {order}")

    def test_runs_do_not_mix(self) -> None:
        """One sampler serves several runs, one after the other and at the same time.

        Why: buffers, generators or counters kept on the sampler let one request change another's text.

        Mend: keep everything that changes during a run in its `SamplerState`.
        """
        first, second = [PROMPTS[2], PROMPTS[0]], [PROMPTS[1]]
        options = {"block_size": 3, "temperature": self.temperature}
        want = [self._texts(prompts, **options) for prompts in (first, second)]
        sampler = self.make(self.denoiser(pad=PAD), **options)
        states = [sampler.start(fresh(prompts)) for prompts in (first, second)]
        for _ in range(STEPS):
            for state in states:
                if not state.finished:
                    sampler.step(state)
        expect(all(state.finished for state in states), f"two runs side by side are not finished after {STEPS} steps")
        expect_equal([texts(sampler.finish(state)) for state in states], want, "two runs side by side, and each alone")
        expect_equal(texts(sampler.sample(fresh(first))), want[0], "a third run, and a fresh one")

    @requires("samples_exactly")
    def test_samples_follow_the_joint_distribution(self) -> None:
        """With one token a step and random order, samples are draws from the model's joint distribution.

        Why: wrong temperatures, noise in low precision (arXiv:2409.02908) and draws that depend on the order bias
        every text a little and no single text visibly.

        Mend: draw each token from softmax(logits / temperature) in float64, and the order independently of the draws.
        """
        joint = random_joint(VOCAB, 4, seed=5)
        sampler = self.make(self.denoiser(joint), max_new_tokens=3, temperature=1.0, confidence="random")
        samples = sampler.sample([[1]] * 3000).sequences  # (N, D)
        expect_fit(samples, conditional(joint, 1))

    def _texts(self, prompts: Sequence[Sequence[int]], **options: object) -> list[list[int]]:
        return texts(self.make(self.denoiser(pad=PAD), **options).sample(fresh(prompts)))


def conditional(joint: Tensor, first: int) -> dict[tuple[int, ...], float]:
    """The probability of every text of the joint that begins with that token."""
    rest = joint[first] / joint[first].sum()
    states = itertools.product(range(joint.shape[0]), repeat=rest.dim())
    return {(first, *state): float(rest[state]) for state in states}


@contextmanager
def process_seed(seed: int) -> Iterator[None]:
    """Seeds the generators of torch and Python inside the ``with`` block and leaves them as they were after it."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
