"""Masking: only what may be masked, at the rate of the schedule, from the generator and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_core.noise import apply_mask, get_schedule, mask_tokens, masked_where, sample_time

MASK = 99


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    st.integers(1, 5),
    st.integers(0, 8),
    st.integers(0, 2**32),
    st.sampled_from(["linear", "cosine"]),
    st.floats(0, 0.9),
)
def test_only_maskable_tokens_change_and_only_into_the_mask(rows, length, seed, schedule, epsilon):
    g = generator(seed)
    ids = torch.randint(0, MASK, (rows, length), generator=g)
    maskable = torch.rand(rows, length, generator=g) < 0.7
    time = sample_time(rows, epsilon=epsilon, generator=g)
    assert time.shape == (rows,)
    assert bool(((time >= epsilon) & (time <= 1)).all())
    corruption = mask_tokens(ids, maskable, MASK, time, get_schedule(schedule), g)
    assert not bool((corruption.masked & ~maskable).any())
    assert torch.equal(corruption.input_ids == MASK, corruption.masked)
    assert torch.equal(corruption.input_ids[~corruption.masked], ids[~corruption.masked])
    assert torch.equal(corruption.time, time)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_rate_follows_the_schedule(schedule, t):
    n, length = 200, 200
    ids, maskable = torch.zeros(n, length, dtype=torch.int64), torch.ones(n, length, dtype=torch.bool)
    maskable[:, ::2] = False
    corruption = mask_tokens(ids, maskable, MASK, torch.full((n,), t), get_schedule(schedule), generator(1))
    p, count = 1 - get_schedule(schedule).alpha(t), n * length / 2
    z = (int(corruption.masked.sum()) - count * p) / math.sqrt(count * p * (1 - p))
    assert abs(z) < 4


def test_the_ends_mask_all_and_nothing():
    ids, maskable = torch.zeros(2, 500, dtype=torch.int64), torch.ones(2, 500, dtype=torch.bool)
    corruption = mask_tokens(ids, maskable, MASK, torch.tensor([0.0, 1.0]), get_schedule("linear"), generator())
    assert corruption.masked.sum(1).tolist() == [0, 500]


def test_rows_follow_their_own_time():
    draws = torch.tensor([[0.2, 0.6], [0.2, 0.6]])
    masked = masked_where(draws, torch.tensor([0.5, 0.7]), get_schedule("linear"))
    assert masked.tolist() == [[True, False], [True, True]]


def test_times_are_uniform_above_epsilon():
    time = sample_time(100_000, epsilon=0.2, generator=generator(2))
    assert abs(float(time.mean()) - 0.6) < 4 * 0.8 / math.sqrt(12 * 100_000)
    assert abs(float(time.var()) - 0.8**2 / 12) < 0.001


def test_the_generator_is_the_only_source():
    ids, maskable = torch.zeros(3, 50, dtype=torch.int64), torch.ones(3, 50, dtype=torch.bool)

    def draw(seed):
        g = generator(seed)
        return mask_tokens(ids, maskable, MASK, sample_time(3, epsilon=0.0, generator=g), get_schedule("linear"), g)

    before = torch.get_rng_state()
    first = draw(5)
    torch.manual_seed(123)
    again, other = draw(5), draw(6)
    torch.set_rng_state(before)
    assert torch.equal(first.masked, again.masked)
    assert torch.equal(first.time, again.time)
    assert not torch.equal(first.masked, other.masked)


def test_inputs_are_left_alone():
    ids = torch.zeros(1, 4, dtype=torch.int64)
    apply_mask(ids, torch.ones(1, 4, dtype=torch.bool), MASK, torch.ones(1))
    assert ids.tolist() == [[0, 0, 0, 0]]
