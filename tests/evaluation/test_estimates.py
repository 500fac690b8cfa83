"""Estimated likelihoods against enumeration on a toy with exact posteriors: unbiased, with the variance predicted."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dllm_core.conformance.toy import random_joint, toy_denoiser
from dllm_core.errors import OptionError, PromptError
from dllm_core.evaluation import LikelihoodOptions, estimate, loglikelihood
from dllm_core.evaluation.estimates import Piece, draw_copies, enumerate_copies

VOCAB, LENGTH = 2, 7
JOINT = random_joint(VOCAB, LENGTH, seed=3)


def two_patterns(noise: float) -> torch.Tensor:
    """All 0 or all 1, each bit flipped with probability `noise`: what is seen tells a lot about what is not."""
    states = torch.cartesian_prod(*[torch.arange(2)] * LENGTH).sum(1).double()
    ones, zeros = states, LENGTH - states
    halves = [noise**a * (1 - noise) ** b / 2 for a, b in ((ones, zeros), (zeros, ones))]
    return sum(halves).reshape((2,) * LENGTH)


PREFIX, TARGET = (1,), (1, 1, 1, 1, 1, 1)
RUNS = 300


@pytest.fixture(scope="module")
def inexact():
    """A model that is consistent with no joint, so that sets of positions give different estimates."""
    denoiser = toy_denoiser(two_patterns(0.1))
    with torch.no_grad():
        denoiser.model.head.weight.mul_(0.6)
    return denoiser


@pytest.fixture(scope="module")
def by_set(inexact) -> dict[tuple[bool, ...], float]:
    """(T / k) sum log p for every set of masked target positions."""
    clean = torch.tensor([*PREFIX, *TARGET])
    values = {}
    for masked in itertools.product((False, True), repeat=len(TARGET)):
        if any(masked):
            where = torch.tensor([False] * len(PREFIX) + list(masked))
            with torch.no_grad():
                scores = inexact.logits(clean.masked_fill(where, VOCAB)[None])[0].log_softmax(-1)
            total = float(scores[torch.arange(len(clean)), clean][where].sum())
            values[masked] = total * len(TARGET) / sum(masked)
    return values


def weight(masked: tuple[bool, ...]) -> float:
    return 1 / (len(masked) * math.comb(len(masked), sum(masked)))


def moments(by_set) -> tuple[float, float]:
    """Mean and variance of one copy."""
    mean = sum(weight(s) * v for s, v in by_set.items())
    return mean, sum(weight(s) * (v - mean) ** 2 for s, v in by_set.items())


def pair_variance(by_set, mean: float, variance: float) -> float:
    """Variance of the mean of an antithetic pair: its halves depend on each other through the level means only."""
    levels = dict.fromkeys(range(1, len(TARGET) + 1), 0.0)
    for masked, value in by_set.items():
        levels[sum(masked)] += value / math.comb(len(TARGET), sum(masked))
    together = [(levels[k] - mean) * (levels[len(TARGET) + 1 - k] - mean) for k in levels]
    return (variance + sum(together) / len(TARGET)) / 2


def runs(denoiser, levels: str, mc_num: int = 8) -> list:
    options = [LikelihoodOptions(mc_num=mc_num, batch_size=mc_num, levels=levels, seed=seed) for seed in range(RUNS)]
    return [estimate(denoiser, [(PREFIX, TARGET)], each)[0] for each in options]


@pytest.mark.parametrize("levels", ["plain", "antithetic", "stratified"])
def test_estimates_are_unbiased_with_the_predicted_variance(inexact, by_set, levels):
    mean, variance = moments(by_set)
    predicted = {"plain": variance / 8, "antithetic": pair_variance(by_set, mean, variance) / 4}.get(levels)
    got = torch.tensor([each.value for each in runs(inexact, levels)], dtype=torch.float64)
    assert float(got.mean()) == pytest.approx(mean, abs=5 * float(got.std()) / math.sqrt(RUNS))
    if predicted is not None:  # the relative error of a variance from 300 normal draws is 0.08
        assert float(got.var()) == pytest.approx(predicted, rel=0.35)


def test_antithetic_pairs_have_less_variance_than_independent_copies(inexact, by_set):
    mean, variance = moments(by_set)
    assert pair_variance(by_set, mean, variance) < 0.9 * variance / 2
    spread = {
        levels: float(torch.tensor([each.value for each in runs(inexact, levels)]).var())
        for levels in ("plain", "antithetic")
    }
    assert spread["antithetic"] < spread["plain"]


def test_stratified_levels_have_less_variance_than_independent_copies(inexact, by_set):
    values = torch.tensor([each.value for each in runs(inexact, "stratified")])
    assert float(values.var()) < 0.9 * moments(by_set)[1] / 8


@pytest.mark.parametrize("levels", ["plain", "antithetic"])
def test_standard_errors_are_right_on_average(inexact, levels):
    estimates = runs(inexact, levels)
    values = torch.tensor([each.value for each in estimates])
    claimed = torch.tensor([each.standard_error**2 for each in estimates]).mean()
    assert float(claimed) == pytest.approx(float(values.var()), rel=0.35)


def test_a_stratified_set_claims_no_less_than_its_error(inexact):
    estimates = runs(inexact, "stratified")
    values = torch.tensor([each.value for each in estimates])
    assert float(torch.tensor([each.standard_error**2 for each in estimates]).mean()) > float(values.var())


def test_where_all_sets_can_be_computed_the_result_is_exact(inexact, by_set):
    exact = estimate(inexact, [(PREFIX, TARGET)], LikelihoodOptions(mc_num=2 ** len(TARGET) - 1))[0]
    assert exact.value == pytest.approx(moments(by_set)[0], abs=1e-10)
    assert (exact.standard_error, exact.copies) == (0.0, 2 ** len(TARGET) - 1)
    one_less = estimate(inexact, [(PREFIX, TARGET)], LikelihoodOptions(mc_num=2 ** len(TARGET) - 2))[0]
    assert one_less.standard_error > 0


def test_estimates_converge_to_the_exact_value(inexact, by_set):
    for mc_num, near in ((6, 3.0), (60, 0.5)):
        options = [LikelihoodOptions(mc_num=mc_num, levels="antithetic", seed=seed) for seed in range(20)]
        errors = [estimate(inexact, [(PREFIX, TARGET)], each)[0].value - moments(by_set)[0] for each in options]
        assert all(abs(error) < near for error in errors)


@pytest.mark.parametrize("block_size", [1, 2, 3, 10])
@pytest.mark.parametrize("prefix_length", [0, 1, 3])
def test_the_product_over_blocks_is_the_likelihood_of_the_joint(block_size, prefix_length):
    text = (1, 0, 1, 1, 0, 1, 0)
    denoiser = toy_denoiser(JOINT)
    options = LikelihoodOptions(block_size=block_size, mc_num=127)
    got = estimate(denoiser, [(text[:prefix_length], text[prefix_length:])], options)[0]
    exact = float((JOINT[text] / JOINT[text[:prefix_length]].sum()).log())
    assert got.value == pytest.approx(exact, abs=1e-10)
    assert got.standard_error == 0


def test_blocks_of_one_cost_one_copy_a_token_and_are_exact_at_any_mc_num():
    denoiser = toy_denoiser(JOINT)
    got = estimate(denoiser, [(PREFIX, TARGET)], LikelihoodOptions(block_size=1, mc_num=1))[0]
    text = (*PREFIX, *TARGET)
    assert got.value == pytest.approx(float((JOINT[text] / JOINT[PREFIX].sum()).log()), abs=1e-10)
    assert got.copies == len(TARGET)


def test_block_estimates_are_unbiased(inexact):
    exact = estimate(inexact, [(PREFIX, TARGET)], LikelihoodOptions(block_size=4, mc_num=15))[0].value
    options = [LikelihoodOptions(block_size=4, mc_num=4, levels="antithetic", seed=seed) for seed in range(RUNS)]
    got = torch.tensor([estimate(inexact, [(PREFIX, TARGET)], each)[0].value for each in options])
    assert float(got.mean()) == pytest.approx(exact, abs=5 * float(got.std()) / math.sqrt(RUNS))
    assert float(got.std()) > 0.01


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_texts_of_any_length_share_batches_and_get_what_they_get_alone(inexact, block_size, scale):
    texts = [((1,), (0, 1, 1, 0, 1, 0)), ((), (1, 1)), ((0, 1, 1), (1,)), ((1, 0), (0, 0, 1, 1))]
    options = LikelihoodOptions(mc_num=6, batch_size=4, guidance_scale=scale, block_size=block_size, levels="plain")
    together = estimate(inexact, texts, options)
    for text, got in zip(texts, together, strict=True):
        alone = estimate(inexact, [text], options)[0]
        assert got.value == pytest.approx(alone.value, abs=1e-9)
        assert got.copies == alone.copies


def test_guidance_is_that_of_the_single_estimate(inexact):
    got = estimate(inexact, [((1, 1), (1,))], LikelihoodOptions(guidance_scale=1.5))[0].value
    want = loglikelihood(inexact, (1, 1), (1,), mc_num=1, guidance_scale=1.5)
    assert got == pytest.approx(want, abs=1e-10)
    assert got != pytest.approx(loglikelihood(inexact, (1, 1), (1,), mc_num=1), abs=1e-3)


def rows_of(denoiser, work) -> list[int]:
    """Rows of each call of the model while something works."""
    rows: list[int] = []
    hook = denoiser.model.register_forward_pre_hook(
        lambda _, __, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    work()
    hook.remove()
    return rows


def test_choices_of_one_token_share_a_canvas(inexact):
    texts = [((1, 0), (token,)) for token in range(VOCAB)]
    together: list = []
    assert rows_of(inexact, lambda: together.extend(estimate(inexact, texts, LikelihoodOptions()))) == [1]
    scores = inexact.logits(torch.tensor([[1, 0, VOCAB]]))[0, 2].log_softmax(-1)
    assert [each.value for each in together] == pytest.approx(scores[:VOCAB].tolist(), abs=1e-10)


def test_a_set_that_is_drawn_twice_is_computed_once(inexact):
    options = LikelihoodOptions(mc_num=40, batch_size=7, levels="plain")
    masked = draw_copies(Piece(PREFIX, (), TARGET), options).masked
    different = len(masked.unique(dim=0))
    rows = rows_of(inexact, lambda: estimate(inexact, [(PREFIX, TARGET)], options))
    assert (len(masked), sum(rows)) == (40, different)
    assert max(rows) <= 7
    assert different < 40


def test_an_end_in_view_is_what_the_target_is_conditioned_on():
    text, end = (1, 0, 1, 1, 0, 1), 0
    denoiser = toy_denoiser(JOINT, eos=end)
    got = estimate(denoiser, [(text[:2], text[2:])], LikelihoodOptions(mc_num=15, end_in_view=True))[0]
    given = JOINT[text[:2]][..., end].sum()
    assert got.value == pytest.approx(float((JOINT[(*text, end)] / given).log()), abs=1e-10)
    without = estimate(denoiser, [(text[:2], text[2:])], LikelihoodOptions(mc_num=15))[0]
    assert got.value != pytest.approx(without.value, abs=1e-3)
    with pytest.raises(PromptError, match="8 tokens, the model's context is 7"):
        estimate(denoiser, [(text[:2], (*text[2:], 1))], LikelihoodOptions(end_in_view=True))
    with pytest.raises(PromptError, match="no end-of-sequence token"):
        estimate(toy_denoiser(JOINT), [(text[:2], text[2:])], LikelihoodOptions(end_in_view=True))
    with pytest.raises(OptionError, match="end_in_view"):
        LikelihoodOptions(end_in_view=True, block_size=4)


@pytest.mark.parametrize("length", [1, 4])
def test_enumerated_sets_are_all_and_weigh_as_drawn(length):
    copies = enumerate_copies(length)
    assert len({tuple(row) for row in copies.masked.tolist()}) == 2**length - 1
    assert float((copies.weights * copies.masked.sum(1)).sum()) == pytest.approx(length)


def test_antithetic_copies_come_in_pairs_of_complementary_numbers():
    masked = draw_copies(Piece((), (), (0,) * 9), LikelihoodOptions(mc_num=200, levels="antithetic")).masked
    assert (masked.sum(1).unflatten(0, (-1, 2)).sum(1) == 10).all()
    assert len(set(masked.sum(1).tolist())) == 9


@pytest.mark.parametrize(
    "options", [{"mc_num": 0}, {"batch_size": 0}, {"levels": "anti"}, {"guidance_scale": -1.0}, {"block_size": 0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(OptionError):
        LikelihoodOptions(**options)


def test_an_empty_target_is_refused():
    with pytest.raises(PromptError, match="empty"):
        estimate(toy_denoiser(JOINT), [((1,), ())], LikelihoodOptions())
