"""Monte-Carlo likelihoods against enumeration over every mask, and over every order, of a toy with exact posteriors."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from dllm_core.conformance.toy import random_joint, toy_denoiser
from dllm_core.errors import OptionError, PromptError
from dllm_core.evaluation import are_greedy, draw_noise, is_greedy, loglikelihood, masked_loglikelihood

VOCAB, LENGTH = 3, 4
MASK = VOCAB
JOINT = random_joint(VOCAB, LENGTH, seed=2)
TEXTS = [(1, 0, 2, 2), (0, 0, 1, 0), (2, 1, 1, 2)]


def subsets(length: int):
    return itertools.chain.from_iterable(itertools.combinations(range(length), n) for n in range(1, length + 1))


@torch.no_grad()
def expectation(denoiser, prefix: torch.Tensor, target: torch.Tensor, guidance_scale: float = 0.0) -> float:
    """The estimator's mean: every number of masks is as likely, and so is every set of that number."""
    total, length = 0.0, len(target)
    for subset in subsets(length):
        noisy = torch.cat([prefix, target.index_fill(0, torch.tensor(subset), MASK)])[None]
        share = torch.full((1, 1), len(subset) / length, dtype=torch.float64)
        estimate = masked_loglikelihood(denoiser, prefix, target, noisy, share, guidance_scale)
        total += float(estimate) / (length * math.comb(length, len(subset)))
    return total


@torch.no_grad()
def any_order_bound(denoiser, prefix: torch.Tensor, target: torch.Tensor) -> float:
    """log p(target | prefix), token after token, averaged over all orders."""
    total, orders = 0.0, list(itertools.permutations(range(len(target))))
    for order in orders:
        canvas = torch.cat([prefix, torch.full_like(target, MASK)])[None]
        for i in order:
            at = len(prefix) + i
            total += float(denoiser.logits(canvas)[0, at].log_softmax(-1)[target[i]])
            canvas[0, at] = target[i]
    return total / len(orders)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prefix_length", range(LENGTH))
def test_with_the_exact_posterior_the_bound_is_the_likelihood(text, prefix_length):
    denoiser = toy_denoiser(JOINT)
    prefix, target = torch.tensor(text).split([prefix_length, LENGTH - prefix_length])
    given = JOINT[text[:prefix_length]]
    exact = float((JOINT[text] / given.sum()).log())
    assert expectation(denoiser, prefix, target) == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize("text", TEXTS)
def test_with_any_other_model_it_is_the_mean_over_orders_and_below(text):
    denoiser = toy_denoiser(JOINT)
    with torch.no_grad():
        denoiser.model.head.weight.mul_(0.7)
    prefix, target = torch.tensor(text).split([1, LENGTH - 1])
    bound = any_order_bound(denoiser, prefix, target)
    assert expectation(denoiser, prefix, target) == pytest.approx(bound, abs=1e-10)
    assert abs(bound - float((JOINT[text] / JOINT[text[:1]].sum()).log())) > 0.01


@pytest.mark.parametrize("batch_size", [1, 5, 32, 500])
def test_estimates_are_near_their_expectation(batch_size):
    denoiser = toy_denoiser(JOINT)
    prefix, target = torch.tensor(TEXTS[0]).split([1, 3])
    want = expectation(denoiser, prefix, target)
    got = [loglikelihood(denoiser, prefix, target, mc_num=300, batch_size=batch_size, seed=s) for s in range(6)]
    assert sum(got) / len(got) == pytest.approx(want, abs=0.2)  # estimates from 300 copies spread by 0.11


def test_a_seed_gives_the_same_estimate_and_another_one_another():
    denoiser = toy_denoiser(JOINT)
    same = [loglikelihood(denoiser, [1], [0, 2, 2], mc_num=7, batch_size=3, seed=4) for _ in range(2)]
    assert same[0] == same[1]
    assert loglikelihood(denoiser, [1], [0, 2, 2], mc_num=7, batch_size=3, seed=5) != same[0]


def test_numbers_of_masks_are_stratified_and_each_is_uniform():
    prefix, target = torch.tensor([1, 2]), torch.tensor([0, 1, 2, 0, 1])
    generator = torch.Generator().manual_seed(0)
    starts: Counter[int] = Counter()
    where = torch.zeros(len(target))
    for _ in range(600):
        noisy, share = draw_noise(prefix, target, len(target), MASK, generator)
        masked = noisy == MASK
        assert not masked[:, : len(prefix)].any()
        assert torch.equal(noisy[~masked], torch.cat([prefix, target]).expand_as(noisy)[~masked])
        counts = masked.sum(1)
        torch.testing.assert_close(share[:, 0], counts.double() / len(target))
        assert sorted(counts.tolist()) == [1, 2, 3, 4, 5]  # as many copies as tokens: each number once
        starts[int(counts[0])] += 1
        where += masked[counts == 1][0, len(prefix) :]
    for seen in (*starts.values(), *where.tolist()):  # 120 each expected, standard deviation 10
        assert abs(seen - 120) < 40


@pytest.mark.parametrize(("length", "batch"), [(3, 2), (7, 4), (1, 8), (2, 5)])
def test_every_copy_takes_every_number_of_masks(length, batch):
    generator = torch.Generator().manual_seed(1)
    seen = [set() for _ in range(batch)]
    for _ in range(40 * length):
        noisy, _ = draw_noise(torch.tensor([], dtype=torch.int64), torch.zeros(length).long(), batch, MASK, generator)
        for numbers, count in zip(seen, (noisy == MASK).sum(1).tolist(), strict=True):
            numbers.add(count)
    assert seen == [set(range(1, length + 1))] * batch


def test_only_masked_rows_meet_the_head():
    denoiser, rows = toy_denoiser(JOINT), []
    denoiser.model.head.register_forward_hook(lambda _, inputs, out: rows.append(out.shape[:-1].numel()))
    noisy, share = draw_noise(torch.tensor([1]), torch.tensor([0, 2, 1]), 6, MASK, torch.Generator().manual_seed(0))
    masked_loglikelihood(denoiser, torch.tensor([1]), torch.tensor([0, 2, 1]), noisy, share)
    assert rows == [int((noisy == MASK).sum())]


def test_guidance_scores_the_guided_distribution():
    """With the prefix masked in the unconditional part: un + (s + 1)(cond - un)."""
    denoiser, scale = toy_denoiser(JOINT), 1.5
    prefix, target = torch.tensor([1, 0]), torch.tensor([2, 1])
    noisy = torch.tensor([[1, 0, MASK, 1]])
    both = denoiser.logits(torch.tensor([[1, 0, MASK, 1], [MASK, MASK, MASK, 1]]))[:, 2].detach().float()
    want = (both[1] + (scale + 1) * (both[0] - both[1])).log_softmax(-1)[2] / 0.5
    got = masked_loglikelihood(denoiser, prefix, target, noisy, torch.tensor([[0.5]]), scale).detach()
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    assert loglikelihood(denoiser, prefix, target, guidance_scale=scale) != loglikelihood(denoiser, prefix, target)


@pytest.mark.parametrize("block_size", [None, 1, 2])
@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
def test_texts_are_judged_together_as_alone(guidance_scale, block_size):
    denoiser, calls = toy_denoiser(JOINT), []
    how = {"guidance_scale": guidance_scale, "block_size": block_size}
    texts = [
        (list(all_[:n]), list(all_[n:])) for all_ in itertools.product(range(VOCAB), repeat=LENGTH) for n in (0, 2)
    ]
    texts += [([1, 0], [token]) for token in range(VOCAB)]
    alone = [is_greedy(denoiser, *text, **how) for text in texts]
    denoiser.model.register_forward_hook(lambda *_: calls.append(1))
    assert are_greedy(denoiser, texts, **how) == alone
    assert sum(alone) == 1 + VOCAB**2 + 1  # one completion of each different prefix
    assert len(calls) <= 4 * (LENGTH + 1)  # steps, twice with guidance and once more for what a cache keeps


@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
def test_exactly_one_target_of_each_length_is_greedy(guidance_scale):
    denoiser, calls = toy_denoiser(JOINT), []
    denoiser.model.head.register_forward_hook(lambda *_: calls.append(1))
    for prefix in ([], [2], [1, 0]):
        length = LENGTH - len(prefix)
        targets = list(itertools.product(range(VOCAB), repeat=length))
        calls.clear()
        greedy = [t for t in targets if is_greedy(denoiser, prefix, list(t), guidance_scale=guidance_scale)]
        assert len(greedy) == 1
        assert len(calls) < len(targets) * length  # most stop at the first token that differs


@pytest.mark.parametrize(
    ("prefix", "target", "options", "error", "words"),
    [
        ([1], [], {}, PromptError, "target is empty"),
        ([1], [MASK], {}, PromptError, "mask token"),
        ([MASK], [1], {}, PromptError, "mask token"),
        ([1], [9], {}, PromptError, "ids run from 0 to 3"),
        ([1, 1, 1], [1, 1], {}, PromptError, "5 tokens, the model's context is 4"),
        ([1], [1], {"mc_num": 0}, OptionError, "mc_num must be at least 1"),
        ([1], [1], {"batch_size": 0}, OptionError, "batch_size must be at least 1"),
    ],
)
def test_bad_input(prefix, target, options, error, words):
    with pytest.raises(error, match=words):
        loglikelihood(toy_denoiser(JOINT), prefix, target, **options)
