"""The sampler draws from the published law: compared with the enumeration of all texts of a toy model.

Shapes: D positions, V data tokens (the mask is token V), C canvases (V + 1)^D.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from dllm_core.conformance.chi_square import expect_fit
from dllm_core.conformance.toy import random_joint, toy_denoiser
from dllm_core.samplers import MDLMSampler

from dllm_remdm.rates import ETAS, rates
from dllm_remdm.sampler import ReMDMSampler, draw_places

VOCAB, LENGTH, SAMPLES = 2, 3, 3000  # the first position is the prompt
PUBLISHED = {"max_new_tokens": LENGTH, "stochastic_quota": True, "confidence": "random", "temperature": 1.0}
ALL_IN = {"t_on": 0.7, "t_off": 0.3, "alpha_on": 0.5}


@dataclass(frozen=True)
class Case:
    """Options, and what makes them worth a test."""

    remask: str
    eta: float
    steps: int
    schedule: str = "linear"

    @property
    def options(self) -> dict[str, object]:
        return {"remask": self.remask, "eta": self.eta, "steps": self.steps, "schedule": self.schedule} | ALL_IN


CASES = [
    Case("cap", 0.0, 2),
    Case("cap", 0.3, 4),
    Case("cap", 1.0, 5),
    Case("rescale", 0.5, 4, "cosine"),
    Case("rescale", 1.0, 6),
    Case("loop", 0.5, 8),
]


def one_step(model: torch.Tensor, alpha_t: float, alpha_s: float, sigma: float) -> torch.Tensor:
    """The published kernel between all canvases. -> (C, C), rows are where it starts.

    Args:
        model: (C, D, V), for each canvas the model's marginal of each position.
    """
    canvases = list(itertools.product(range(VOCAB + 1), repeat=LENGTH))
    kernel = torch.zeros(len(canvases), len(canvases), dtype=torch.float64)
    for number, canvas in enumerate(canvases):
        law = torch.ones((), dtype=torch.float64)
        for position, token in enumerate(canvas):
            if token == VOCAB:
                each = torch.cat(
                    [
                        (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t) * model[number, position],
                        torch.tensor([(1 - alpha_s - sigma * alpha_t) / (1 - alpha_t)]).double(),
                    ]
                )
            else:
                each = torch.zeros(VOCAB + 1, dtype=torch.float64)
                each[token], each[VOCAB] = 1 - sigma, sigma
            law = (law[..., None] * each).flatten()
        kernel[number] = law
    return kernel


def alpha(case: Case, t: float) -> float:
    """alpha(t), written down anew."""
    plain = {"linear": lambda u: 1 - u, "cosine": lambda u: 1 - float(torch.cos(torch.tensor(torch.pi / 2 * (1 - u))))}
    base = plain[case.schedule]
    if case.remask != "loop":
        return base(t)
    on, off, level = ALL_IN["t_on"], ALL_IN["t_off"], ALL_IN["alpha_on"]
    if t > on:
        return level * base((t - on) / (1 - on))
    return level if t > off else 1 - (1 - level) * (1 - base(t / off))


def law_of(case: Case, denoiser) -> dict[tuple[int, ...], float]:
    """The probability of every text, by the published formulas."""
    canvases = torch.tensor(list(itertools.product(range(VOCAB + 1), repeat=LENGTH)))
    model = denoiser.logits(torch.cat([torch.ones(len(canvases), 1).long(), canvases], 1)).detach()
    model = model[:, 1:, :VOCAB].softmax(-1)  # (C, D, V)
    state = torch.zeros(len(canvases), dtype=torch.float64)
    state[-1] = 1  # all masks
    for step in range(case.steps, 0, -1):
        t, s = step / case.steps, (step - 1) / case.steps
        alpha_t, alpha_s = alpha(case, t), alpha(case, s)
        most = 1.0 if alpha_t < 1e-9 else min(1.0, (1 - alpha_s) / alpha_t)
        sigma = {"cap": min(case.eta, most), "rescale": case.eta * most, "loop": min(case.eta, most)}[case.remask]
        if case.remask == "loop" and not ALL_IN["t_off"] < t <= ALL_IN["t_on"]:
            sigma = 0.0
        state = state @ one_step(model, alpha_t, alpha_s, sigma)
    assert float(state.sum()) == pytest.approx(1)
    return {(1, *canvas): float(p) for canvas, p in zip(canvases.tolist(), state, strict=True) if VOCAB not in canvas}


def samples(denoiser, case: Case) -> torch.Tensor:
    sampler = ReMDMSampler(denoiser, **PUBLISHED, **case.options)
    return sampler.sample([[1]] * SAMPLES).sequences


@pytest.mark.parametrize("case", CASES, ids=str)
def test_samples_follow_the_published_law(case: Case) -> None:
    """Strong dependence between the positions, so that every order and every number of tokens a step counts."""
    denoiser = toy_denoiser(random_joint(VOCAB, LENGTH + 1, seed=3))
    expect_fit(samples(denoiser, case), law_of(case, denoiser))


def test_the_laws_differ() -> None:
    """Otherwise the test above would say nothing of sigma."""
    denoiser = toy_denoiser(random_joint(VOCAB, LENGTH + 1, seed=3))
    plain, remasked = (law_of(Case("cap", eta, 5), denoiser) for eta in (0.0, 1.0))
    with pytest.raises(AssertionError, match="chi-square"):
        expect_fit(samples(denoiser, Case("cap", 1.0, 5)), plain)
    assert max(abs(plain[text] - remasked[text]) for text in plain) > 0.01


@pytest.mark.parametrize("case", CASES, ids=str)
def test_independent_positions_keep_their_marginals(case: Case) -> None:
    """Where the model's product of marginals is the truth, no sigma changes what is sampled."""
    marginals = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.3, 0.7], [0.6, 0.4]]).double()
    joint = torch.einsum("a,b,c,d->abcd", *marginals)
    denoiser = toy_denoiser(joint)
    want = {(1, *rest): float(joint[1][rest] / 0.5) for rest in itertools.product(range(VOCAB), repeat=LENGTH)}
    assert law_of(case, denoiser) == pytest.approx(want)
    expect_fit(samples(denoiser, case), want)


@pytest.mark.parametrize("remask", ETAS)
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_the_share_of_masks_is_kept(remask: str, steps: int) -> None:
    """At every step, in expectation: masks(s) = masks(t) (1 - write) + written(t) again."""
    case = Case(remask, 0.4, steps)
    share = 1.0
    each = rates(steps, "linear", remask, 0.4, *ALL_IN.values())
    for number, rate in zip(range(steps, 0, -1), each, strict=True):
        share = share * (1 - rate.write) + (1 - share) * rate.again
        assert share == pytest.approx(1 - alpha(case, (number - 1) / steps), abs=1e-6)
        assert 0 <= rate.write <= 1
        assert 0 <= rate.again <= 1


SAME = [
    {},
    {"steps": 3},
    {"steps": 20},
    {"steps": 3, "schedule": "cosine", "temperature": 1.0},
    {"steps": 3, "quota": "even", "confidence": "margin"},
    {"steps": 4, "stochastic_quota": True, "temperature": 0.7, "seed": 5},
    {"block_size": 2, "confidence": "random", "temperature": 1.0},
    {"guidance_scale": 0.5, "confidence_temperature": 0.3},
]


@pytest.mark.parametrize("remask", ["cap", "rescale", "conf"])  # with loop, time stands still all the same
@pytest.mark.parametrize("options", SAME, ids=str)
def test_without_masking_again_it_is_the_core_sampler(remask: str, options: dict) -> None:
    """Every canvas of every step, not only the text."""
    denoiser = toy_denoiser(random_joint(3, 7, seed=1), eos=2, pad=0)
    prompts = [[1], [0, 2], [2, 1, 0]]
    plain = list(MDLMSampler(denoiser, max_new_tokens=4, **options).stream([list(p) for p in prompts]))
    sampler = ReMDMSampler(denoiser, max_new_tokens=4, remask=remask, eta=0.0, **options)
    steps = list(sampler.stream([list(p) for p in prompts]))
    assert [step.input_ids.tolist() for step in steps] == [step.input_ids.tolist() for step in plain]
    assert [step.committed.tolist() for step in steps] == [step.committed.tolist() for step in plain]


def test_places_are_drawn_by_their_weights() -> None:
    rows, weights = 20_000, torch.tensor([-0.9, -0.1, -0.5, 0.0])
    written = torch.tensor([True, True, True, False]).expand(rows, -1)
    draws = torch.rand(rows, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = draw_places(written, weights.expand(rows, -1), torch.ones(rows).long(), draws)
    assert bool((chosen.sum(1) == 1).all())
    law = weights[:3].softmax(0)
    expect_fit(chosen.long().argmax(1, keepdim=True), {(place,): float(p) for place, p in enumerate(law)})


def test_places_are_as_many_as_asked_for() -> None:
    written = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    draws = torch.full((3, 3), 0.5)
    for counts in ([2, 1, 0], [1, 0, 0], [2, 2, 2]):
        chosen = draw_places(written, torch.zeros(3, 3), torch.tensor(counts), draws)
        assert chosen.sum(1).tolist() == [min(c, w) for c, w in zip(counts, [2, 1, 0], strict=True)]
        assert not bool((chosen & ~written).any())
