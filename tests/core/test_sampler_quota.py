"""Quotas: how many tokens each step commits, against the published tables and the schedule's own expectation."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_core.noise import get_schedule
from dllm_core.noise.counter import key_from, uniform
from dllm_core.samplers.quota import even_quota, quota_counts, schedule_quota

PUBLISHED = json.loads((Path(__file__).parent / "goldens" / "transfer_tokens.json").read_text())["cases"]


def test_every_published_table():
    assert len(PUBLISHED) == 744
    rows = 0
    for case in PUBLISHED:
        for masks, want in zip(case["masks"], case["table"], strict=True):
            counts = tuple(count for count in want if count > 0)
            assert quota_counts(masks, case["steps"], "schedule", case["schedule"]) == counts, case
            rows += 1
    assert rows == 980


@settings(max_examples=100, deadline=None)
@given(
    masks=st.integers(0, 300),
    steps=st.integers(1, 300),
    kind=st.sampled_from(["schedule", "floor", "even"]),
    schedule=st.sampled_from(["linear", "cosine"]),
    time_epsilon=st.sampled_from([0.0, 1e-3, 0.3]),
)
def test_counts_are_positive_and_add_up(masks, steps, kind, schedule, time_epsilon):
    counts = quota_counts(masks, steps, kind, schedule, time_epsilon)
    assert sum(counts) == masks
    assert all(count > 0 for count in counts)
    assert len(counts) <= steps


@settings(max_examples=50, deadline=None)
@given(masks=st.integers(1, 300), steps=st.integers(1, 300))
def test_even_counts_differ_by_at_most_one_and_the_larger_come_first(masks, steps):
    counts = even_quota(masks, steps)
    assert len(counts) == min(masks, steps)
    assert list(counts) == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1


def test_the_official_rule_by_hand():
    assert even_quota(10, 4) == (3, 3, 2, 2)
    assert even_quota(3, 5) == (1, 1, 1)
    assert even_quota(0, 5) == ()


@pytest.mark.parametrize(
    ("masks", "steps", "counts"),
    [
        (12, 8, (1, 1, 1, 1, 1, 2, 2, 3)),
        (20, 5, (3, 4, 4, 4, 5)),
        (16, 16, (1,) * 14 + (2,)),
        (7, 20, (1,) * 5 + (2,)),
        (128, 12, (10,) * 5 + (11,) * 6 + (12,)),
    ],
)
def test_rounded_down_on_a_grid_that_ends_at_epsilon_it_is_the_official_rule_of_dream(masks, steps, counts):
    """int(left * (1 - s / t)) on linspace(1, 1e-3, steps + 1), all that is left in the last step."""
    assert quota_counts(masks, steps, "floor", "linear", 1e-3) == counts
    times, left, want = torch.linspace(1, 1e-3, steps + 1).tolist(), masks, []
    for step, (t, s) in enumerate(itertools.pairwise(times), 1):
        want.append(left if step == steps else int(left * (1 - s / t)))
        left -= want[-1]
    assert counts == tuple(count for count in want if count)


@settings(max_examples=50, deadline=None)
@given(masks=st.integers(1, 200), more=st.integers(0, 100))
def test_the_linear_schedule_writes_one_token_a_step_where_steps_suffice(masks, more):
    assert schedule_quota(masks, masks + more, "linear") == (1,) * masks


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_stochastic_counts_have_the_schedule_as_their_expectation(schedule):
    """A mask is revealed in the step from t to s with probability alpha(s) - alpha(t), whatever the others do."""
    masks, steps, runs = 40, 5, 800
    totals = torch.zeros(steps, dtype=torch.float64)
    for run in range(runs):
        key, per_step = torch.tensor(key_from(3, run)), [0] * steps

        def draw(step: int, left: int, probability: float, key=key, per_step=per_step) -> int:
            per_step[step] = int((uniform(key, step, torch.arange(left)) < probability).sum())
            return per_step[step]

        assert sum(schedule_quota(masks, steps, schedule, draw)) == masks
        totals += torch.tensor(per_step, dtype=torch.float64)
    alpha = get_schedule(schedule).alpha
    for step in range(steps):
        reveal = alpha((steps - step - 1) / steps) - alpha((steps - step) / steps)
        error = math.sqrt(masks * reveal * (1 - reveal) / runs)
        assert abs(float(totals[step]) / runs - masks * reveal) < 4 * error
