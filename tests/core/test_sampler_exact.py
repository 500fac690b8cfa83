"""The sampler on a toy whose posterior is exact: what it draws from is enumerated, and its samples fit that law.

`Law` is the algorithm written down a second time, over probabilities instead of draws: at every step each open position
draws a token from its marginal, some positions are selected, their tokens are kept.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
import torch

import dllm_core as dllm
from dllm_core.conformance.toy import random_joint, toy_denoiser
from dllm_core.samplers import planning

VOCAB, LENGTH = 3, 4
MASK = VOCAB
RUNS = 8000
JOINT = random_joint(VOCAB, LENGTH, seed=5)
Canvas = tuple[int, ...]


def log_marginals(canvas: Canvas) -> dict[int, torch.Tensor]:
    """log p(token | the tokens that are there) at every masked position, by summing the table."""
    table = JOINT
    for axis, token in enumerate(canvas):
        if token != MASK:
            table = table.index_select(axis, torch.tensor(token))
    masked = [axis for axis, token in enumerate(canvas) if token == MASK]
    return {i: (table.sum([a for a in range(LENGTH) if a != i]) / table.sum()).log() for i in masked}


@dataclass
class Law:
    """The exact distribution of the sampler's output.

    Args:
        blocks: for each block its positions and, for each step, the possible counts and their probabilities given how
            many masks are left.
        hidden: given positions that the unconditional canvas masks.
    """

    blocks: list[tuple[tuple[int, ...], list]]
    confidence: str = "probability"
    temperature: float = 1.0
    confidence_temperature: float = 0.0
    sharpened: bool = False  # confidence is measured after temperature
    guidance_scale: float = 0.0
    hidden: tuple[int, ...] = ()
    known: dict = field(default_factory=dict)

    def __call__(self, canvas: Canvas, block: int = 0, step: int = 0) -> dict[Canvas, float]:
        """The probability of every text that may come of a canvas."""
        if block == len(self.blocks):
            return {canvas: 1.0}
        positions, counts = self.blocks[block]
        if step == len(counts):
            return self(canvas, block + 1)
        if (canvas, block, step) not in self.known:
            self.known[canvas, block, step] = self._after(canvas, block, step, positions, counts[step])
        return self.known[canvas, block, step]

    def _after(self, canvas: Canvas, block: int, step: int, positions: tuple[int, ...], counts) -> dict:
        result: dict[Canvas, float] = defaultdict(float)
        opened = [i for i in positions if canvas[i] == MASK]
        scores = self._scores(canvas)
        draws = [self._draw_law(scores[i]) for i in opened]
        for tokens in itertools.product(range(VOCAB), repeat=len(opened)):
            drawn = math.prod(float(law[token]) for law, token in zip(draws, tokens, strict=True))
            sure = [self._sure(scores[i], token) for i, token in zip(opened, tokens, strict=True)]
            for count, chance in counts(len(opened)):
                for chosen, selected in self._selections(sure, count):
                    kept = {opened[c]: tokens[c] for c in chosen}
                    after = tuple(kept.get(i, token) for i, token in enumerate(canvas))
                    for text, p in self(after, block, step + 1).items():
                        result[text] += drawn * chance * selected * p
        return dict(result)

    def _scores(self, canvas: Canvas) -> dict[int, torch.Tensor]:
        conditional = log_marginals(canvas)
        if not self.guidance_scale:
            return conditional
        unconditional = log_marginals(tuple(MASK if i in self.hidden else t for i, t in enumerate(canvas)))
        scale = self.guidance_scale + 1
        return {i: unconditional[i] + scale * (c - unconditional[i]) for i, c in conditional.items()}

    def _draw_law(self, scores: torch.Tensor) -> torch.Tensor:
        if self.temperature:
            return (scores / self.temperature).softmax(-1)
        return torch.nn.functional.one_hot(scores.argmax(), VOCAB)

    def _sure(self, scores: torch.Tensor, token: int) -> float:
        p = self._draw_law(scores) if self.sharpened else scores.softmax(-1)
        best = p.sort(descending=True).values
        kinds = {"probability": p[token], "margin": best[0] - best[1], "entropy": (p * p.log()).sum(), "random": p[0]}
        return float(kinds[self.confidence])

    def _selections(self, sure: list[float], count: int) -> list[tuple[tuple[int, ...], float]]:
        everyone = range(len(sure))
        if self.confidence == "random":
            subsets = list(itertools.combinations(everyone, count))
            return [(subset, 1 / len(subsets)) for subset in subsets]
        if not self.confidence_temperature:
            return [(tuple(sorted(everyone, key=lambda i: (-sure[i], i))[:count]), 1.0)]
        weights = [math.exp(s / self.confidence_temperature) for s in sure]  # one after the other, by their weights
        result = []
        for order in itertools.permutations(everyone, count):
            p, left = 1.0, sum(weights)
            for i in order:
                p, left = p * weights[i] / left, left - weights[i]
            result.append((order, p))
        return result


def always(count: int):
    return lambda left: [(count, 1.0)]


def binomial(probability: float):
    def counts(left: int):
        return [(n, math.comb(left, n) * probability**n * (1 - probability) ** (left - n)) for n in range(left + 1)]

    return counts


ONE_BY_ONE = [((1, 2, 3), [always(1)] * 3)]


def conditional(canvas: Canvas) -> dict[Canvas, float]:
    """The joint, given the tokens that are there."""
    states = itertools.product(range(VOCAB), repeat=LENGTH)
    fitting = [s for s in states if all(t in (MASK, x) for t, x in zip(canvas, s, strict=True))]
    total = sum(float(JOINT[s]) for s in fitting)
    return {s: float(JOINT[s]) / total for s in fitting}


def assert_same_law(got: dict[Canvas, float], want: dict[Canvas, float]) -> None:
    assert got.keys() == want.keys()
    assert all(got[text] == pytest.approx(want[text], abs=1e-12) for text in want)


def assert_fits(samples: torch.Tensor, law: dict[Canvas, float]) -> None:
    """Chi-square test of the rows (N, L) against a law; the seed is fixed, so this holds or fails for good."""
    counts: dict[Canvas, int] = defaultdict(int)
    for row in samples.tolist():
        counts[tuple(row)] += 1
    assert counts.keys() <= {text for text, p in law.items() if p > 0}
    expected = {text: p * len(samples) for text, p in law.items()}
    cells = [text for text in law if expected[text] >= 5]
    rare = sum(expected[text] for text in law if expected[text] < 5)
    statistic = sum((counts[text] - expected[text]) ** 2 / expected[text] for text in cells)
    if rare >= 5:
        seen = len(samples) - sum(counts[text] for text in cells)
        statistic += (seen - rare) ** 2 / rare
    freedom = len(cells) - (rare < 5)
    chance = torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2))
    assert float(chance) > 1e-3, f"chi-square {statistic:.1f} at {freedom} degrees of freedom"


def draw(canvas: Canvas, runs: int = RUNS, **options: object) -> torch.Tensor:
    """Samples (N, L): completions where the masks stand at the end, else infilled."""
    options = {"temperature": 1.0, "seed": 1} | options
    given = [token for token in canvas if token != MASK]
    if list(canvas[: len(given)]) == given:
        sampler = dllm.sampler("mdlm", toy_denoiser(JOINT), max_new_tokens=LENGTH - len(given), **options)
        return sampler.sample([given] * runs).sequences
    return dllm.sampler("mdlm", toy_denoiser(JOINT), **options).infill([list(canvas)] * runs).sequences


PROMPT = (1, MASK, MASK, MASK)


@pytest.mark.parametrize("confidence", ["random", "margin", "entropy"])
def test_one_token_a_step_reproduces_the_joint_in_any_order(confidence):
    """The chain rule: the order may depend on what is written already, but not on what is drawn now."""
    law = Law(ONE_BY_ONE, confidence)(PROMPT)
    assert_same_law(law, conditional(PROMPT))
    assert_fits(draw(PROMPT, confidence=confidence), law)


def test_ranking_by_the_drawn_tokens_probability_prefers_likely_texts():
    """Published low-confidence remasking: unlikely draws are put off and drawn again, so its law is not the joint."""
    law = Law(ONE_BY_ONE, "probability")(PROMPT)
    want = conditional(PROMPT)
    assert sum(law.values()) == pytest.approx(1.0)
    assert max(abs(law[text] - want[text]) for text in want) > 0.01
    surprise = [-sum(p * math.log(want[text]) for text, p in each.items()) for each in (law, want)]
    assert surprise[0] < surprise[1]
    assert_fits(draw(PROMPT), law)


@pytest.mark.parametrize("block_size", [1, 2])
def test_blocks_reproduce_the_joint(block_size):
    blocks = {1: [((i,), [always(1)]) for i in (1, 2, 3)], 2: [((1, 2), [always(1)] * 2), ((3,), [always(1)])]}
    law = Law(blocks[block_size], "random")(PROMPT)
    assert_same_law(law, conditional(PROMPT))
    assert_fits(draw(PROMPT, confidence="random", block_size=block_size), law)
    by_probability = Law(blocks[block_size], "probability")(PROMPT)
    assert_fits(draw(PROMPT, block_size=block_size), by_probability)
    if block_size == 1:  # left to right: there is no choice of positions
        assert_same_law(by_probability, conditional(PROMPT))


@pytest.mark.parametrize("canvas", [(MASK, 0, MASK, MASK), (MASK, MASK, 2, MASK), (MASK, 1, MASK, 0)])
def test_infilling_draws_from_the_conditional(canvas):
    blocks = [(tuple(range(LENGTH)), [always(1)] * canvas.count(MASK))]
    law = Law(blocks, "random")(canvas)
    assert_same_law(law, conditional(canvas))
    assert_fits(draw(canvas, confidence="random"), law)


def test_all_tokens_in_one_step_are_the_product_of_the_marginals():
    marginals = {i: s.exp() for i, s in log_marginals(PROMPT).items()}
    product = {
        (1, *tokens): math.prod(float(marginals[i][t]) for i, t in zip((1, 2, 3), tokens, strict=True))
        for tokens in itertools.product(range(VOCAB), repeat=3)
    }
    for confidence in ("random", "probability"):
        law = Law([((1, 2, 3), [always(3)])], confidence)(PROMPT)
        assert_same_law(law, product)
        assert_fits(draw(PROMPT, confidence=confidence, steps=1), law)


@pytest.mark.parametrize("confidence", ["random", "probability", "margin", "entropy"])
def test_several_tokens_a_step_follow_the_enumerated_law(confidence):
    law = Law([((1, 2, 3), [always(2), always(1)])], confidence)(PROMPT)
    assert_fits(draw(PROMPT, confidence=confidence, steps=2), law)


def test_an_unprompted_canvas_of_blocks_of_two():
    canvas = (MASK,) * 3 + (0,)
    law = Law([((0, 1), [always(2)]), ((2, 3), [always(1)])], "margin")(canvas)
    assert_fits(draw(canvas, confidence="margin", block_size=2, steps_per_block=1), law)


@pytest.mark.parametrize(("time_epsilon", "first"), [(0.0, 0.5), (0.4, 0.3)])
def test_stochastic_quotas(time_epsilon, first):
    """Two steps under the linear schedule: each mask is revealed in the first with 1 - s / t, then the rest.

    Each on its own: a binomial number of positions, chosen by chance, is Dream's algorithm "origin".
    """
    law = Law([((1, 2, 3), [binomial(first), binomial(1.0)])], "random")(PROMPT)
    options = {"confidence": "random", "steps": 2, "stochastic_quota": True, "time_epsilon": time_epsilon}
    assert_fits(draw(PROMPT, 1500, **options), law)


def test_noise_used_twice_would_be_seen(monkeypatch):
    monkeypatch.setattr(planning, "CONFIDENCE", planning.TOKEN)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_fits(draw(PROMPT, confidence="random"), Law(ONE_BY_ONE, "random")(PROMPT))


@pytest.mark.parametrize("temperature", [0.6, 2.0])
def test_temperature(temperature):
    law = Law(ONE_BY_ONE, "entropy", temperature=temperature)(PROMPT)
    assert_fits(draw(PROMPT, confidence="entropy", temperature=temperature), law)


def test_positions_are_drawn_by_the_confidence_temperature():
    law = Law(ONE_BY_ONE, "probability", confidence_temperature=0.3)(PROMPT)
    assert_fits(draw(PROMPT, confidence_temperature=0.3), law)
    certain = Law(ONE_BY_ONE, "probability")(PROMPT)
    assert max(abs(law[text] - p) for text, p in certain.items()) > 0.01


@pytest.mark.parametrize("confidence", ["probability", "margin", "entropy"])
def test_confidence_of_the_sampling_distribution(confidence):
    law = Law(ONE_BY_ONE, confidence, temperature=0.4, sharpened=True)(PROMPT)
    assert_fits(draw(PROMPT, confidence=confidence, temperature=0.4, confidence_distribution="sampling"), law)
    other = Law(ONE_BY_ONE, confidence, temperature=0.4)(PROMPT)
    differs = max(abs(law[text] - p) for text, p in other.items()) > 0.005
    assert differs or confidence != "probability"  # in this table the others rank the same positions first either way


@pytest.mark.parametrize("keep", [(), (0,)])
def test_guidance(keep):
    canvas = (1, 0, MASK, MASK)
    hidden = tuple(i for i in (0, 1) if canvas[i] not in keep)
    law = Law([((2, 3), [always(1)] * 2)], "margin", guidance_scale=1.5, hidden=hidden)(canvas)
    assert_fits(draw(canvas, confidence="margin", guidance_scale=1.5, guidance_keep_tokens=keep), law)
    assert max(abs(law[text] - p) for text, p in conditional(canvas).items()) > 0.01


@pytest.mark.parametrize("confidence", ["probability", "margin", "entropy"])
@pytest.mark.parametrize("counts", [(3,), (2, 1), (1, 1, 1)])
@pytest.mark.parametrize("token", range(VOCAB))
def test_greedy_runs_are_the_enumerated_ones(confidence, counts, token):
    canvas = (token, MASK, MASK, MASK)
    law = Law([((1, 2, 3), [always(n) for n in counts])], confidence, temperature=0.0)(canvas)
    (text,) = [text for text, p in law.items() if p > 0]
    assert draw(canvas, 1, confidence=confidence, temperature=0.0, steps=len(counts)).tolist() == [list(text)]
    if len(counts) == 1:
        assert text == (token, *(int(s.argmax()) for s in log_marginals(canvas).values()))
