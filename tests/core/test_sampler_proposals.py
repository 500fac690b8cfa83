"""Proposals and commits as pure functions: which token, how sure, which positions first."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_core.samplers import MaskedOptions, Proposal, Quota
from dllm_core.samplers.options import CONFIDENCES
from dllm_core.samplers.proposals import Draws, guided, propose, without_borrowed_lead

MASK, VOCAB = 5, 6
SCORES = torch.tensor([1.0, 0.2, -0.5, 0.7, -1.5, 0.9])  # the mask token's is the second largest
NOTHING = Draws(None, None, None)


def options(**given: object) -> MaskedOptions:
    return MaskedOptions(**given)


def shares(scores: torch.Tensor, resolution: int = 4000, **given: object) -> torch.Tensor:
    """The share of the unit interval that each token is drawn from: its exact probability, to 1 / resolution."""
    draw = ((torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution)[None]
    logits = scores.expand(1, resolution, -1).clone()
    tokens = propose(logits, MASK, options(**given), Draws(draw, draw, None)).tokens
    return torch.bincount(tokens[0], minlength=len(scores)) / resolution


def allowed_shares(kept: set[int], temperature: float = 1.0) -> torch.Tensor:
    scores = SCORES.double() / temperature
    return torch.tensor([scores[i] if i in kept else -math.inf for i in range(VOCAB)]).softmax(-1).float()


def assert_shares(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, atol=3 / 4000, rtol=0)


def test_greedy_takes_the_best_token_but_never_the_mask_token():
    logits = torch.stack([SCORES, SCORES.roll(-1), torch.eye(VOCAB)[MASK] * 9])[None]
    assert propose(logits, MASK, options(), NOTHING).tokens.tolist() == [[0, 4, 0]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_are_drawn_from_the_tempered_distribution_without_the_mask_token(temperature):
    assert_shares(shares(SCORES, temperature=temperature), allowed_shares({0, 1, 2, 3, 4}, temperature))


def test_temperature_limits():
    assert shares(SCORES, temperature=1e-6).tolist() == [1, 0, 0, 0, 0, 0]
    assert_shares(shares(SCORES, temperature=1e9), torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2, 0]))


@pytest.mark.parametrize("k", range(1, VOCAB + 3))
def test_top_k_keeps_the_k_best_of_all_tokens(k):
    best = SCORES.argsort(descending=True)[:k].tolist()
    assert_shares(shares(SCORES, temperature=1.0, top_k=k), allowed_shares(set(best) - {MASK}))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.5, 0.6, 0.75, 0.9, 0.99, 1.0])
def test_top_p_keeps_the_smallest_set_that_holds_p(p, temperature):
    probabilities = (SCORES / temperature).softmax(-1)
    kept, mass = set(), 0.0
    for token in SCORES.argsort(descending=True).tolist():
        kept.add(token)
        mass += float(probabilities[token])
        if mass > p:
            break
    want = allowed_shares(kept - {MASK}, temperature)
    assert_shares(shares(SCORES, temperature=temperature, top_p=p), want)


def test_top_k_and_top_p_together_keep_what_both_keep():
    assert_shares(shares(SCORES, temperature=1.0, top_k=3, top_p=0.9), allowed_shares({0, 3}))
    assert_shares(shares(SCORES, temperature=1.0, top_k=5, top_p=0.01), allowed_shares({0}))


def test_where_only_the_mask_token_would_be_kept_the_best_other_one_stays():
    scores = SCORES.clone()
    scores[MASK] = 20.0
    assert shares(scores, temperature=1.0, top_k=1).tolist() == [1, 0, 0, 0, 0, 0]
    assert shares(scores, temperature=1.0, top_p=0.5).tolist() == [1, 0, 0, 0, 0, 0]


def test_suppressed_tokens_are_never_chosen_and_do_not_count():
    want = torch.tensor([-math.inf, 0.2, -0.5, -math.inf, -1.5, -math.inf]).softmax(-1)
    assert_shares(shares(SCORES, temperature=1.0, suppress_tokens=(0, 3)), want)
    proposal = propose(SCORES[None, None].clone(), MASK, options(suppress_tokens=(0, 3)), NOTHING)
    with_mask = torch.tensor([0.2, -0.5, -1.5, 0.9]).softmax(-1)  # the mask token stays in the distribution
    assert proposal.tokens.item() == 1
    assert proposal.confidence.item() == pytest.approx(with_mask[0].item())


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("probability", lambda p: p[0]),
        ("margin", lambda p: p[0] - p[MASK]),  # the two best tokens, the mask token among them
        ("entropy", lambda p: (p * p.log()).sum()),
    ],
)
def test_confidence_is_measured_on_the_models_own_distribution(kind, want):
    draws = Draws(torch.full((1, 1), 0.01, dtype=torch.float64), None, None)  # takes token 0
    for temperature in (0.3, 1.0, 2.0):
        logits = SCORES[None, None].clone()
        proposal = propose(logits, MASK, options(confidence=kind, temperature=temperature), draws)
        assert proposal.tokens.item() == 0
        assert proposal.confidence.item() == pytest.approx(want(SCORES.softmax(-1)).item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0, 1e-30])
@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("probability", lambda p: p[..., 0]),
        ("margin", lambda p: p[..., 0] - p[..., 1]),  # SCORES are ordered so below
        ("entropy", lambda p: -torch.special.entr(p).sum(-1)),
    ],
)
def test_confidence_of_the_sampling_distribution_is_measured_behind_temperature_and_top_k(kind, want, temperature):
    scores, kept = SCORES.sort(descending=True).values, 3
    tempered = (scores[:kept].double() / temperature).softmax(-1)
    given = options(confidence=kind, temperature=temperature, top_k=kept, confidence_distribution="sampling")
    certain = torch.zeros(1, 1, dtype=torch.float64)  # draws the first token
    proposal = propose(scores.expand(1, 1, -1).clone(), MASK, given, Draws(certain, certain, None))
    assert proposal.tokens.item() == 0
    assert proposal.confidence.item() == pytest.approx(want(tempered).item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["probability", "margin", "entropy"])
def test_without_temperature_the_two_distributions_of_confidence_are_one(kind):
    logits = torch.stack([SCORES, 3 * SCORES, SCORES.roll(2)])[None]
    both = [options(confidence=kind, top_p=0.8, confidence_distribution=name) for name in ("model", "sampling")]
    one, other = (propose(logits.clone(), MASK, given, NOTHING).confidence for given in both)
    assert torch.equal(one, other)


def test_a_low_temperature_ties_only_what_is_measured_behind_it():
    """Why it is not the default: everything is sure, and ties are written from left to right."""
    logits = torch.stack([SCORES, 3 * SCORES, 2 * SCORES])[None]
    draw = torch.full((1, 3), 0.5, dtype=torch.float64)

    def first(name: str) -> int:
        given = options(temperature=0.001, confidence_distribution=name)
        return int(propose(logits.clone(), MASK, given, Draws(draw, None, None)).priority.argmax())

    assert (first("model"), first("sampling")) == (1, 0)


def test_random_confidence_is_the_draw():
    draw = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    proposal = propose(SCORES.expand(2, 3, -1).clone(), MASK, options(confidence="random"), Draws(None, draw, None))
    assert torch.equal(proposal.confidence, draw.float())


@pytest.mark.parametrize("kind", CONFIDENCES)
@pytest.mark.parametrize("confidence_temperature", [0.0, 0.7])
def test_tokens_of_suppressed_confidence_may_be_chosen_but_rank_last(kind, confidence_temperature):
    sure_of_0, unsure = torch.tensor([9.0, 8.0, 0, 0, 0, 0]), torch.tensor([0, 0, 0.2, 0, 0, 0])
    chosen = options(confidence=kind, suppress_confidence_tokens=(0,), confidence_temperature=confidence_temperature)
    draw = torch.tensor([[0.9, 0.1, 0.2]], dtype=torch.float64)
    draws = Draws(None, draw, draw if confidence_temperature else None)
    proposal = propose(torch.stack([sure_of_0, unsure, unsure])[None], MASK, chosen, draws)
    assert proposal.tokens.tolist() == [[0, 2, 2]]
    assert proposal.priority[0, 0] < proposal.priority[0, 1:].min()
    assert proposal.confidence[0, 0] < proposal.confidence[0, 1:].min()


def test_half_precision_logits_are_ranked_in_float32():
    logits = torch.tensor([[[4.0, 0, 0, 0, 0, 0], [4.03, 0, 0, 0, 0, 0]]])
    assert propose(logits.bfloat16(), MASK, options(), NOTHING).confidence.dtype == torch.float32


def test_ranking_by_confidence_and_noise_draws_positions_from_the_tempered_confidences():
    """The position that comes first is drawn from softmax(confidence / T): the Gumbel-max identity."""
    generator, runs, temperature = torch.Generator().manual_seed(0), 20000, 0.2
    logits = torch.stack([SCORES, 0.5 * SCORES, 2 * SCORES])
    draw = torch.rand(runs, 3, dtype=torch.float64, generator=generator)
    chosen = options(confidence_temperature=temperature)
    proposal = propose(logits.expand(runs, 3, -1).clone(), MASK, chosen, Draws(None, None, draw))
    first = torch.bincount(proposal.priority.argmax(1), minlength=3) / runs
    want = (logits.softmax(-1)[:, 0].double() / temperature).softmax(-1)
    torch.testing.assert_close(first.double(), want, atol=4 / (2 * math.sqrt(runs)), rtol=0)


def test_guidance_by_hand():
    conditional, unconditional = torch.tensor([2.0, 1.0]), torch.tensor([0.5, 3.0])
    assert guided(conditional, unconditional, 0.0).tolist() == [2.0, 1.0]
    assert guided(conditional, unconditional, 1.5).tolist() == [0.5 + 2.5 * 1.5, 3.0 - 2.5 * 2.0]


def ranked(priority: list[float]) -> Proposal:
    values = torch.tensor([priority])
    return Proposal(torch.zeros(values.shape, dtype=torch.int64), values, values)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_quota_takes_the_surest_masks_and_ties_go_to_the_left(data):
    size = data.draw(st.integers(1, 8))
    priority = data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9, -math.inf]), min_size=size, max_size=size))
    masks = data.draw(st.integers(1, size))  # masks stand in front of the filler
    quota = data.draw(st.integers(0, masks))
    masked = torch.arange(size)[None] < masks
    chosen = Quota().select(ranked(priority), masked, torch.tensor([quota]))
    want = sorted(range(masks), key=lambda i: (-priority[i], i))[:quota]
    assert chosen[0].nonzero().flatten().tolist() == sorted(want)


def test_a_borrowed_score_does_not_lead_whatever_the_filler_says():
    slots, masked = torch.tensor([[0, 1, 7, 2]]), torch.tensor([[True, True, True, False]])
    for filler in (0.1, 0.9):
        priority = without_borrowed_lead(ranked([0.5, 0.5, 0.3, filler]), slots, masked).priority
        assert priority[0, 0] < priority[0, 1]
        assert priority[0, 0] > priority[0, 2]
    behind = ranked([0.5, 0.5, 0.6, 0.1])
    assert torch.equal(without_borrowed_lead(behind, slots, masked).priority, behind.priority)
