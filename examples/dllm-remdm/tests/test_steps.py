"""What a run looks like: how many steps it takes, what it masks again, which options it refuses."""

from __future__ import annotations

import pytest
import torch
from dllm_core import OptionError
from dllm_core.conformance.toy import random_joint, toy_denoiser
from dllm_core.samplers.quota import even_quota, schedule_quota

from dllm_remdm.plan import Counts, drawn, rounded, without_idle
from dllm_remdm.rates import ETAS, rates
from dllm_remdm.sampler import ReMDMSampler

LOOP = (0.55, 0.05, 0.9)


def sampler(**options: object) -> ReMDMSampler:
    return ReMDMSampler(toy_denoiser(random_joint(2, 9, seed=1)), max_new_tokens=8, **options)


@pytest.mark.parametrize("remask", ETAS)
def test_more_steps_than_tokens_are_used(remask: str) -> None:
    """The point of the method: beyond a token a step more steps go on improving the text."""
    steps = list(sampler(remask=remask, eta=0.5, steps=40, seed=1).stream([[1]]))
    written = torch.stack([step.committed for step in steps]).sum(0)[0]
    assert 8 < len(steps) <= 40
    assert int(written[0]) == 0  # the prompt
    assert bool((written[1:] >= 1).all())
    assert int(written.sum()) > 8


def test_only_tokens_of_its_own_are_masked_again() -> None:
    canvas = [1, 2, 2, 0, 2, 2, 1, 2]
    for step in sampler(remask="rescale", eta=1.0, steps=30).stream([canvas[:1]]):
        assert step.input_ids[0, 0] == 1
    output = sampler(remask="rescale", eta=1.0, steps=30).infill([canvas])
    assert [g for g, c in zip(output.sequences[0].tolist(), canvas, strict=True) if c != 2] == [1, 0, 1]


def test_a_token_stays_at_least_until_the_next_step() -> None:
    before = torch.tensor([[1] + [2] * 8])
    for step in sampler(remask="cap", eta=1.0, steps=30).stream([[1]]):
        assert not bool((step.committed & (step.input_ids == 2)).any())
        again = (before != 2) & (step.input_ids == 2)
        assert not bool((again & step.committed).any())
        before = step.input_ids


def test_how_sure_a_token_was_is_remembered() -> None:
    """`conf` shares sigma out by the confidence with which each token was written last."""
    run = sampler(remask="conf", steps=30, confidence_temperature=1000.0)
    state = run.start([[1], [0]])
    known: dict[tuple[int, int], float] = {}
    while True:
        step = run.step(state)
        if state.finished:
            break
        for row, position in step.committed.nonzero().tolist():
            known[row, position] = float(step.confidence[row, position])
        for (row, position), confidence in known.items():
            assert float(state.block.confidence[row, position - 1]) == confidence
    assert len(known) == 16
    assert len(set(known.values())) > 4


def test_counts_of_the_rounded_plan() -> None:
    """Eight masks in eight steps, half of what is possible masked again: the masks left fall by one a step."""
    plan = list(rounded([1] * 8, rates(8, "linear", "rescale", 0.5, *LOOP), one_in_all=False))
    assert [counts.masks for counts in plan] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert all(counts.write == counts.again + 1 for counts in plan)
    assert sum(counts.again for counts in plan) == 6  # the sum of min(written, left - 1) / 2
    assert plan[0].again == plan[-1].again == 0


@pytest.mark.parametrize("remask", ETAS)
@pytest.mark.parametrize("steps", [1, 3, 9, 50])
def test_every_plan_ends_without_masks(remask: str, steps: int) -> None:
    each = rates(steps, "cosine", remask, 0.9, *LOOP)
    generator = torch.Generator().manual_seed(steps)

    def draw(what: str, step: int, n: int, probability: float) -> int:
        return int((torch.rand(n, generator=generator) < probability).sum())

    for one_in_all in (False, True):
        for masks in (0, 1, 5, 32):
            plans = [list(drawn(masks, each, draw, one_in_all=one_in_all)) for _ in range(20)]
            counts = even_quota(masks, steps), schedule_quota(masks, steps, "cosine")
            plans += [list(rounded(net, each, one_in_all=one_in_all)) for net in counts]
            for plan in plans:
                left = masks
                for counts in plan:
                    assert counts.masks == left
                    assert 0 <= counts.write <= left
                    assert 0 <= counts.again <= masks - left
                    left += counts.again - counts.write
                assert left == 0


def test_a_low_rate_is_not_rounded_away() -> None:
    plan = list(rounded([1] * 32, rates(128, "linear", "cap", 0.008, *LOOP), one_in_all=False))
    expected = sum(0.008 * (32 - counts.masks) for counts in plan)
    assert expected > 15
    assert sum(counts.again for counts in plan) == pytest.approx(expected, abs=2)


def test_idle_steps_are_left_out() -> None:
    assert without_idle(iter([Counts(2, 0, 0), Counts(2, 1, 0), Counts(1, 0, 1)])) == [Counts(2, 1, 0), Counts(1, 0, 1)]


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(OptionError, match="t_off must be below t_on"):
        sampler(remask="loop", t_on=0.1, t_off=0.2)


@pytest.mark.parametrize("options", [{"time_epsilon": 0.1}, {"quota": "floor"}])
def test_another_grid_of_times_is_refused(options: dict) -> None:
    with pytest.raises(OptionError, match="its own grid of times"):
        sampler(**options)
