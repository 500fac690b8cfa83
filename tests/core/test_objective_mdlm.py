"""The masked diffusion objective against exact enumeration, and the mutants that these checks must catch.

A check is a function of the objective class, so that it runs on the real one and on deliberately broken ones. The toy
model knows the posterior exactly (dllm_core/conformance/toy.py), so the right answers are theorems, not recordings.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dllm_core.conformance.toy import entropy, random_joint, toy_denoiser
from dllm_core.errors import DataError, OptionError
from dllm_core.noise import Corruption, apply_mask, get_schedule, mask_tokens
from dllm_core.objectives.base import ObjectiveOutput, maskable_positions
from dllm_core.objectives.mdlm import NORMALIZATIONS, MDLMObjective

VOCAB, LENGTH = 2, 3
MASK = VOCAB
JOINT = random_joint(VOCAB, LENGTH, seed=3)
STATES = list(itertools.product(range(VOCAB), repeat=LENGTH))
HIDDEN_SETS = list(itertools.product([False, True], repeat=LENGTH))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wrong_denoiser():
    """The toy with a perturbed head: finite gradients everywhere, and not the true posterior."""
    denoiser = toy_denoiser(JOINT)
    with torch.no_grad():
        denoiser.model.head.weight[:MASK, :MASK] += 0.6 * torch.randn(MASK, MASK, generator=generator(1)).double()
    return denoiser


def quadrature(epsilon: float, nodes: int = 12) -> list[tuple[float, float]]:
    """Gauss-Legendre nodes and weights of the mean over times uniform on [epsilon, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return [(epsilon + (1 - epsilon) * (a + 1) / 2, b / 2) for a, b in zip(x, w, strict=True)]


def expected(objective, denoiser, batch, *, epsilon: float, read: Callable[[ObjectiveOutput], torch.Tensor]) -> float:
    """The exact mean of `read(output)` over masks and time for a batch of one row, by enumeration and quadrature."""
    maskable = maskable_positions(batch)[0].tolist()
    total = 0.0
    for hidden in HIDDEN_SETS:
        if any(h and not m for h, m in zip(hidden, maskable, strict=True)):
            continue
        masked = torch.tensor([hidden])
        for time, share in quadrature(epsilon):
            t = torch.tensor([time], dtype=torch.float64)
            p = 1 - get_schedule(objective.schedule).alpha(time)
            odds = math.prod(p if h else 1 - p for h, m in zip(hidden, maskable, strict=True) if m)
            output = objective.loss(denoiser, batch, apply_mask(batch["input_ids"], masked, MASK, t))
            total += share * odds * float(read(output).detach())
    return total


def data_mean(objective, denoiser, *, known: int = 0, read=lambda output: output.loss) -> float:
    """The exact mean over data, masks and time; the first `known` tokens are context."""
    total = 0.0
    for state in STATES:
        ids = torch.tensor([state])
        labels = ids.masked_fill(torch.arange(LENGTH) < known, -100)
        batch = {"input_ids": ids, "labels": labels}
        total += float(JOINT[state]) * expected(objective, denoiser, batch, epsilon=0.0, read=read)
    return total


# ---------------------------------------------------------------------------------------------------- the checks


def bound_is_tight(cls) -> None:
    """With the true posterior the expected loss is the entropy of the data, for every schedule."""
    for schedule in ("linear", "cosine"):
        objective = cls(schedule=schedule, normalization="batch", time_epsilon=0.0)
        assert data_mean(objective, toy_denoiser(JOINT)) == pytest.approx(entropy(JOINT), abs=2e-4)
        assert data_mean(objective, toy_denoiser(JOINT), read=lambda o: o.nll_sum) == pytest.approx(
            entropy(JOINT), abs=2e-4
        )


def bound_given_context_is_tight(cls) -> None:
    """With the first token as context it is the conditional entropy."""
    first = JOINT.sum((1, 2))
    want = entropy(JOINT) - float(-(first * first.log()).sum())
    objective = cls(normalization="batch", time_epsilon=0.0)
    assert data_mean(objective, toy_denoiser(JOINT), known=1) == pytest.approx(want, abs=2e-4)


def draws_average_to_the_enumeration(cls) -> None:
    """The mean over drawn corruptions is the exact one within 4 standard errors, for every weighting."""
    batch = {"input_ids": torch.tensor([[0, 1, 1]]), "labels": torch.tensor([[0, -100, 1]])}
    denoiser, epsilon, rows, calls = toy_denoiser(JOINT), 0.1, 64, 60
    many = {name: value.expand(rows, -1) for name, value in batch.items()}
    for weighting, schedule in (("schedule", "linear"), ("schedule", "cosine"), ("uniform", "linear")):
        objective = cls(weighting=weighting, schedule=schedule, normalization="token", time_epsilon=epsilon)
        g = generator(11)
        losses = torch.stack(
            [
                objective.loss(denoiser, many, objective.corrupt(many, denoiser, generator=g)).loss.detach()
                for _ in range(calls)
            ]
        )
        want = expected(objective, denoiser, batch, epsilon=epsilon, read=lambda o: o.loss)
        assert abs(float(losses.mean()) - want) < 4 * float(losses.std()) / math.sqrt(calls)


RAGGED = {
    "input_ids": torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1], [1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]]),
    "labels": torch.tensor(
        [[0, 1, 1], [1, 1, -100], [-100, 0, -100], [1, 0, 1], [-100] * 3, [0, 1, 0], [-100, 1, 1], [0, 0, 1]]
    ),
}


def rows_of(batch, corruption, start, stop):
    part = {name: value[start:stop] for name, value in batch.items()}
    cut = Corruption(
        input_ids=corruption.input_ids[start:stop],
        masked=corruption.masked[start:stop],
        time=corruption.time[start:stop],
    )
    return part, cut


def accumulation_adds_up(cls) -> None:
    """One batch of 8 and four of 2 give the same loss and gradient, for every normalization."""
    for normalization in NORMALIZATIONS:
        objective = cls(normalization=normalization)
        denoiser = wrong_denoiser()
        corruption = objective.corrupt(RAGGED, denoiser, generator=generator(4))
        whole = objective.loss(denoiser, RAGGED, corruption)
        whole.loss.backward()
        gradient = denoiser.model.head.weight.grad.clone()
        denoiser.model.zero_grad()
        parts = [rows_of(RAGGED, corruption, i, i + 2) for i in range(0, 8, 2)]
        total = sum(objective.normalizer(part) for part, _ in parts)
        losses = [objective.loss(denoiser, part, cut, normalizer=total).loss for part, cut in parts]
        sum(losses).backward()
        assert float(sum(losses).detach()) == pytest.approx(float(whole.loss.detach()), rel=1e-6)
        torch.testing.assert_close(denoiser.model.head.weight.grad, gradient, rtol=1e-6, atol=1e-9)


def normalizations_are_the_published_ones(cls) -> None:
    """Written out from the definition, row by row."""
    masked = torch.tensor(
        [[1, 0, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 0]]
    ).bool()
    time = torch.linspace(0.1, 0.9, 8).double()
    corruption = apply_mask(RAGGED["input_ids"], masked, MASK, time)
    denoiser = toy_denoiser(JOINT)
    scores = denoiser.logits(corruption.input_ids).log_softmax(-1).detach()
    maskable = RAGGED["labels"] != -100
    want = dict.fromkeys(NORMALIZATIONS, 0.0)
    for i, j in itertools.product(range(8), range(LENGTH)):
        if masked[i, j]:
            term = -float(scores[i, j, RAGGED["input_ids"][i, j]]) / (float(time[i]) + 1e-6)
            want["token"] += term / int(maskable.sum())
            want["sequence"] += term / (int(maskable[i].sum()) * 8)
            want["batch"] += term / 8
    for normalization in NORMALIZATIONS:
        output = cls(normalization=normalization).loss(denoiser, RAGGED, corruption)
        assert float(output.loss.detach()) == pytest.approx(want[normalization], rel=1e-6)
        assert float(output.nll_sum) == pytest.approx(want["batch"] * 8, rel=1e-6)
        assert int(output.token_count) == int(maskable.sum())


def ignored_tokens_are_never_hidden(cls) -> None:
    objective = cls(time_epsilon=0.9)
    for seed in range(5):
        corruption = objective.corrupt(RAGGED, toy_denoiser(JOINT), generator=generator(seed))
        assert not bool((corruption.masked & (RAGGED["labels"] == -100)).any())


def ignored_tokens_have_no_gradient(cls) -> None:
    """Where a corruption made by hand hides context too, what stood there changes neither loss nor gradient."""
    hidden = torch.full((1, LENGTH), MASK)
    corruption = Corruption(input_ids=hidden, masked=torch.ones(1, LENGTH, dtype=torch.bool), time=torch.tensor([0.5]))
    seen = []
    for token in (0, 1):
        denoiser = wrong_denoiser()
        batch = {"input_ids": torch.tensor([[token, 1, 0]]), "labels": torch.tensor([[-100, 1, 0]])}
        loss = cls().loss(denoiser, batch, corruption).loss
        loss.backward()
        seen.append((loss.detach(), denoiser.model.head.weight.grad))
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


def padding_changes_nothing(cls) -> None:
    """A row in a padded batch adds what it adds alone; padding is neither attended to nor learned."""
    objective = cls(normalization="batch")
    ids = torch.tensor([[1, 0, 1], [0, 1, 0]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    masked = torch.tensor([[True, False, False], [False, True, True]])
    time = torch.tensor([0.3, 0.6])
    denoiser = wrong_denoiser()
    together = objective.loss(denoiser, batch, apply_mask(ids, masked, MASK, time))
    alone = [
        objective.loss(denoiser, {"input_ids": ids[i : i + 1, :n]}, apply_mask(ids[i : i + 1, :n], m, MASK, t))
        for i, (n, m, t) in enumerate([(2, masked[:1, :2], time[:1]), (3, masked[1:], time[1:])])
    ]
    assert int(together.token_count) == 5
    assert float(together.nll_sum) == pytest.approx(sum(float(a.nll_sum) for a in alone), rel=1e-6)
    for seed in range(10):
        drawn = objective.corrupt(batch, denoiser, generator=generator(seed))
        assert not bool(drawn.masked[0, 2])


def randomness_is_the_generators(cls) -> None:
    """Same seed, same corruption; the global state neither matters nor moves; the loss draws nothing."""
    objective, denoiser = cls(), toy_denoiser(JOINT)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = objective.corrupt(RAGGED, denoiser, generator=generator(7))
    losses = [float(objective.loss(denoiser, RAGGED, first).loss.detach()) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again = objective.corrupt(RAGGED, denoiser, generator=generator(7))
    assert torch.equal(first.masked, again.masked)
    assert torch.equal(first.time, again.time)
    assert losses[0] == losses[1]


def times_are_per_row_and_above_epsilon(cls) -> None:
    batch = {"input_ids": torch.zeros(2000, LENGTH, dtype=torch.int64)}
    time = cls(time_epsilon=0.5).corrupt(batch, toy_denoiser(JOINT), generator=generator(2)).time
    assert len(time.unique()) > 1900
    assert float(time.min()) >= 0.5
    assert abs(float(time.mean()) - 0.75) < 4 * 0.5 / math.sqrt(12 * 2000)


CHECKS = (
    bound_is_tight,
    bound_given_context_is_tight,
    draws_average_to_the_enumeration,
    accumulation_adds_up,
    normalizations_are_the_published_ones,
    ignored_tokens_are_never_hidden,
    ignored_tokens_have_no_gradient,
    padding_changes_nothing,
    randomness_is_the_generators,
    times_are_per_row_and_above_epsilon,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_objective(check):
    check(MDLMObjective)


# --------------------------------------------------------------------------------------------------- the mutants


class WeightWithoutTime(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None):
        timeless = dataclasses.replace(corruption, time=torch.full_like(corruption.time, 0.5))
        return super().loss(denoiser, batch, timeless, normalizer=normalizer)


class NormalizedByHiddenTokens(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None):
        return super().loss(denoiser, batch, corruption, normalizer=corruption.masked.sum())


class IgnoresTheStepsNormalizer(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None):
        return super().loss(denoiser, batch, corruption)


class HidesContext(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator):
        return super().corrupt({"input_ids": batch["input_ids"]}, denoiser, generator=generator)


class LearnsContext(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None):
        labels = torch.where(corruption.masked, batch["input_ids"], batch.get("labels", batch["input_ids"]))
        return super().loss(denoiser, {**batch, "labels": labels}, corruption, normalizer=normalizer)


class DropsTheAttentionMask(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None):
        bare = {name: value for name, value in batch.items() if name != "attention_mask"}
        return super().loss(denoiser, bare, corruption, normalizer=normalizer)


class HidesWithTheCleanRate(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator):
        drawn = super().corrupt(batch, denoiser, generator=generator)
        flipped = maskable_positions(batch) & ~drawn.masked
        return apply_mask(batch["input_ids"], flipped, denoiser.mask_token_id, drawn.time)


class OneTimeForTheBatch(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator):
        time = torch.rand(1, generator=generator).expand(len(batch["input_ids"]))
        schedule = get_schedule(self.schedule)
        return mask_tokens(
            batch["input_ids"], maskable_positions(batch), denoiser.mask_token_id, time, schedule, generator
        )


class ForgetsEpsilon(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator):
        return dataclasses.replace(self, time_epsilon=0.0)._corrupt_plainly(batch, denoiser, generator)

    def _corrupt_plainly(self, batch, denoiser, generator):
        return super().corrupt(batch, denoiser, generator=generator)


class DrawsFromGlobalState(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator):
        own = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        return super().corrupt(batch, denoiser, generator=own)


class DrawsInTheLoss(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None):
        fresh = self.corrupt(batch, denoiser, generator=torch.Generator().manual_seed(int(torch.randint(2**31, ()))))
        return super().loss(denoiser, batch, fresh, normalizer=normalizer)


class LearnsTheNeighbour(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None):
        moved = {**batch, "input_ids": batch["input_ids"].roll(1, 1)}
        return super().loss(denoiser, moved, corruption, normalizer=normalizer)


class SequenceByPaddedLength(MDLMObjective):
    def _scale(self, batch, maskable):
        scale = super()._scale(batch, maskable)
        return torch.full_like(scale, 1 / maskable.shape[1]) if self.normalization == "sequence" else scale


class SequencesThatTeachOnly(MDLMObjective):
    def normalizer(self, batch):
        if self.normalization == "token":
            return super().normalizer(batch)
        return maskable_positions(batch).any(1).sum()


class SeesTheAnswer(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None):
        peek = dataclasses.replace(corruption, input_ids=batch["input_ids"])
        return super().loss(denoiser, batch, peek, normalizer=normalizer)


class BoundWithTheLossWeights(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None):
        output = super().loss(denoiser, batch, corruption, normalizer=normalizer)
        return dataclasses.replace(output, nll_sum=output.loss.detach())


MUTANTS = (
    WeightWithoutTime,
    NormalizedByHiddenTokens,
    IgnoresTheStepsNormalizer,
    HidesContext,
    LearnsContext,
    DropsTheAttentionMask,
    HidesWithTheCleanRate,
    OneTimeForTheBatch,
    ForgetsEpsilon,
    DrawsFromGlobalState,
    DrawsInTheLoss,
    LearnsTheNeighbour,
    SequenceByPaddedLength,
    SequencesThatTeachOnly,
    SeesTheAnswer,
    BoundWithTheLossWeights,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_caught(mutant):
    caught = []
    for check in reversed(CHECKS):  # the cheap ones are last
        try:
            check(mutant)
        except AssertionError:
            caught.append(check.__name__)
            break
    assert caught


# ------------------------------------------------------------------------------------------------- single cases


def test_a_wrong_model_stays_above_the_entropy():
    objective = MDLMObjective(normalization="batch", time_epsilon=0.0)
    assert data_mean(objective, wrong_denoiser()) > entropy(JOINT) + 0.01


def test_nothing_hidden_is_a_differentiable_zero():
    denoiser = wrong_denoiser()
    ids = torch.tensor([[0, 1, 1]])
    corruption = apply_mask(ids, torch.zeros(1, 3, dtype=torch.bool), MASK, torch.tensor([0.5]))
    output = MDLMObjective().loss(denoiser, {"input_ids": ids}, corruption)
    assert float(output.loss.detach()) == 0
    output.loss.backward()
    assert float(denoiser.model.head.weight.grad.abs().sum()) == 0


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_nothing_to_learn_is_a_zero_not_a_nan(normalization):
    ids = torch.tensor([[0, 1, 1]])
    batch = {"input_ids": ids, "labels": torch.full_like(ids, -100)}
    objective = MDLMObjective(normalization=normalization)
    corruption = objective.corrupt(batch, toy_denoiser(JOINT), generator=generator())
    output = objective.loss(toy_denoiser(JOINT), batch, corruption)
    assert float(output.loss.detach()) == 0
    assert int(output.token_count) == 0


def test_without_labels_every_real_token_is_learned():
    batch = {"input_ids": torch.tensor([[0, 1, 1]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    assert maskable_positions(batch).tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linaer"}, "Did you mean 'linear'"),
        ({"weighting": "schedul"}, "Did you mean 'schedule'"),
        ({"normalization": "tokens"}, "must be one of token, sequence, batch"),
        ({"time_epsilon": 1.0}, "time_epsilon must be at least 0 and below 1"),
        ({"time_epsilon": -0.1}, "time_epsilon must be at least 0 and below 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(OptionError, match=message):
        MDLMObjective(**options)


def test_by_name():
    import dllm_core as dllm

    assert dllm.objective("mdlm", time_epsilon=0.1) == MDLMObjective(time_epsilon=0.1)
    with pytest.raises(OptionError, match=r"unknown option 'scheduler'\. Did you mean 'schedule'"):
        dllm.objective("mdlm", scheduler="linear")
    with pytest.raises(dllm.UnknownComponentError, match="Did you mean 'mdlm'"):
        dllm.objective("mdml")


def test_misshapen_labels():
    batch = {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "labels": torch.zeros(2, 4, dtype=torch.int64)}
    with pytest.raises(DataError, match=r"labels is shaped \(2, 4\)"):
        maskable_positions(batch)
