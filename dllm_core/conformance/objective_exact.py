"""Checks of an objective's values against enumeration over every mask, and against the entropy of a known law.

Shapes: B batch, L length, V data tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dllm_core.conformance.expect import expect
from dllm_core.conformance.objective_suite import IGNORED, ObjectiveSuite, to_learn
from dllm_core.conformance.suite import requires
from dllm_core.conformance.toy import entropy, random_joint
from dllm_core.models.denoiser import Denoiser
from dllm_core.objectives import Batch, Objective

WORDS, PLACES = 2, 3  # of a joint that is small enough to go through every text and mask
COUNTS = (9, 1, 3, 5, 2, 6, 1, 5)  # of the texts 000, 001, ... in a law that is no product of its positions'
NODES = 4  # of the quadrature over times; exact for polynomials up to degree 7
DRAWS, COPIES = 60, 64


@dataclass
class Sums:
    """Means of a loss and of ``nll_sum``."""

    loss: float = 0.0
    nll: float = 0.0


class ExactChecks(ObjectiveSuite):
    """The values of an objective where they are known."""

    @requires("hides_independently")
    def test_drawn_losses_average_to_the_exact_one(self) -> None:
        """The mean over drawn corruptions is the sum over every mask and the integral over time.

        Why: draws and weights must belong together; each looks right on its own when the other is wrong, for instance
        losses that are divided by the number of hidden tokens, or times other than those that drew the masks.

        Mend: weigh with the ``time`` of the corruption, and divide by what does not depend on the draw.
        """
        objective, denoiser = self.make(), self.denoiser(random_joint(WORDS, PLACES, seed=3))
        row = {"input_ids": torch.tensor([[0, 1, 1]]), "labels": torch.tensor([[0, IGNORED, 1]])}
        many = {name: value.expand(COPIES, -1).contiguous() for name, value in row.items()}
        generator = torch.Generator().manual_seed(11)
        values = []
        for _ in range(DRAWS):
            output = objective.loss(denoiser, many, objective.corrupt(many, denoiser, generator=generator))
            values.append([float(output.loss.detach()), float(output.nll_sum) / COPIES])
        drawn = torch.tensor(values, dtype=torch.float64)
        exact = self._exact(objective, denoiser, row, lowest=self.lowest_time(objective))
        for name, column, want in (("loss", drawn[:, 0], exact.loss), ("nll_sum", drawn[:, 1], exact.nll)):
            got, error = float(column.mean()), float(column.std()) / math.sqrt(DRAWS)
            fits = abs(got - want) < 4.5 * error
            expect(fits, f"mean {name} of drawn corruptions is {got:.4f} +- {error:.4f}, the exact one {want:.4f}")

    @requires("is_bound")
    def test_the_bound_is_tight(self) -> None:
        """With a model that knows the posterior the mean of ``nll_sum`` over data, times and masks is the entropy.

        Why: perplexities are compared between papers; one that is off by a weight, a normalization or the tokens it
        counts is a number of no meaning. With context it is the entropy given the context.

        Mend: weigh each hidden token's -log p by -alpha'(t) / (1 - alpha(t)), whatever weights the loss has, and sum;
        say ``is_bound = False`` where ``nll_sum`` is another quantity.
        """
        joint = torch.tensor(COUNTS, dtype=torch.float64).reshape((WORDS,) * PLACES) / sum(COUNTS)
        first = joint.sum((1, 2))
        objective, denoiser = self.make(), self.denoiser(joint)
        for known, want in ((0, entropy(joint)), (1, entropy(joint) - entropy(first))):
            got = self._exact(objective, denoiser, every_text(known), lowest=0.0).nll / sum(COUNTS)
            fits = abs(got - want) < 1e-3 * want
            expect(fits, f"the mean bound is {got:.5f} nats, the entropy given {known} tokens {want:.5f}")

    def _exact(self, objective: Objective, denoiser: Denoiser, batch: Batch, *, lowest: float) -> Sums:
        """Mean loss and nll_sum over all masks, and over times uniform from `lowest` to 1.

        All rows of the batch learn the same positions, so one mask at a time serves them all: sums do not mix rows.
        """
        learned = to_learn(batch)[0]
        total = Sums()
        for time, share in quadrature(lowest):
            rate = 1 - self.schedule(objective).alpha(time)
            for masked in subsets(learned):
                hidden = int(masked.sum())
                odds = share * rate**hidden * (1 - rate) ** (int(learned.sum()) - hidden)
                at = torch.full((len(batch["input_ids"]),), time, dtype=torch.float64)
                with torch.no_grad():
                    corruption = self.hide(batch, masked.expand_as(batch["input_ids"]), at, denoiser)
                    output = objective.loss(denoiser, batch, corruption)
                total.loss += odds * float(output.loss)
                total.nll += odds * float(output.nll_sum)
        return total


def every_text(known: int) -> dict[str, Tensor]:
    """Every text as often as `COUNTS` says (B, L); the first tokens are context."""
    texts = torch.cartesian_prod(*[torch.arange(WORDS)] * PLACES)
    ids = texts.repeat_interleave(torch.tensor(COUNTS), 0)
    return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(PLACES) < known, IGNORED)}


def subsets(positions: Tensor) -> Iterator[Tensor]:
    """Every subset of the positions (L,) that are set."""
    places = positions.nonzero()[:, 0].tolist()
    for chosen in itertools.product([False, True], repeat=len(places)):
        masked = torch.zeros_like(positions)
        masked[places] = torch.tensor(chosen, dtype=torch.bool)
        yield masked


def quadrature(lowest: float) -> list[tuple[float, float]]:
    """Times and shares of the mean over times uniform on [lowest, 1] (Gauss and Legendre)."""
    points, weights = np.polynomial.legendre.leggauss(NODES)
    return [
        (lowest + (1 - lowest) * (x + 1) / 2, w / 2) for x, w in zip(points.tolist(), weights.tolist(), strict=True)
    ]
