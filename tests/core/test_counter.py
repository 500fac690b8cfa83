"""Counter-based noise: equal to a big-integer reference, uniform, independent across counters, batch-invariant."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_core.noise.counter import fold, key_from, uniform

INT64 = st.integers(-(2**63), 2**63 - 1)


def reference(key: int, *counters: int) -> int:
    """SplitMix64 written from the paper with unbounded integers; returns the unsigned state."""

    def finalise(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    state = finalise(key % 2**64)
    for counter in counters:
        state = finalise((state + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64)
    return state


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def keys(n: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor([key_from(seed, i) for i in range(n)])


def ks_distance(draws: torch.Tensor) -> float:
    """Kolmogorov-Smirnov distance to the uniform law, times sqrt(n); above 1.95 in 1 of 1,000 samples."""
    x = draws.flatten().sort().values
    n = len(x)
    grid = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum((grid[1:] - x).max(), (x - grid[:-1]).max())) * math.sqrt(n)


@settings(max_examples=200, deadline=None)
@given(INT64, st.lists(INT64, max_size=4))
def test_equals_the_big_integer_reference(key, counters):
    want = reference(key, *counters)
    tensors = [torch.tensor(c) for c in counters]
    assert int(fold(torch.tensor(key), *tensors)) == signed(want)
    assert int(fold(torch.tensor(key), *counters)) == signed(want)  # Python integers count like tensors
    assert key_from(key, *counters) == signed(want)
    assert float(uniform(torch.tensor(key), *counters)) == (2 * (want >> 12) + 1) / 2**53


def test_known_splitmix64_stream():
    # The first outputs of SplitMix64 with seed 0 (the test vector that its C and Java forms share): the finaliser maps
    # 0 to 0, so key 0 starts exactly that stream.
    want = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert [v % 2**64 for v in fold(torch.tensor(0), torch.arange(4)).tolist()] == want


@pytest.mark.parametrize("state", [0, -1, 2**63 - 1, -(2**63)])
def test_draws_stay_inside_the_open_interval(state, monkeypatch):
    import dllm_core.noise.counter as counter

    monkeypatch.setattr(counter, "fold", lambda key, *counters: torch.tensor([state]))
    draw = float(counter.uniform(torch.tensor(0)))
    assert 0.0 < draw < 1.0
    assert math.isfinite(-math.log(-math.log(draw)))


@pytest.mark.parametrize("seed", range(4))
def test_uniform_by_kolmogorov_smirnov_and_chi_square(seed):
    draws = uniform(keys(100, seed)[:, None], 7, torch.arange(1000))  # (100, 1000)
    assert ks_distance(draws) < 1.95
    counts = torch.histc(draws, bins=256, min=0, max=1)
    expected = draws.numel() / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 4 * math.sqrt(2 * 255)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbouring_counters_are_uncorrelated(axis):
    draws = uniform(keys(64)[:, None, None], torch.arange(64)[:, None], torch.arange(64)) - 0.5
    n = draws.shape[axis]
    left, right = draws.narrow(axis, 0, n - 1), draws.narrow(axis, 1, n - 1)
    assert abs(float((left * right).mean()) * 12) < 4 / math.sqrt(left.numel())
    assert abs(float(((left**2 - 1 / 12) * (right**2 - 1 / 12)).mean()) * 180) < 4 / math.sqrt(left.numel())
    # pairs fill the unit square
    cells = ((left + 0.5) * 16).long() * 16 + ((right + 0.5) * 16).long()
    counts = torch.bincount(cells.flatten(), minlength=256).double()
    expected = cells.numel() / 256
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - 255) < 4 * math.sqrt(2 * 255)


def test_every_output_bit_is_balanced_and_flips_with_every_input_bit():
    inputs = keys(512)
    base = fold(inputs, 0)
    bit = torch.arange(64)
    ones = ((base[:, None] >> bit) & 1).double().mean(0)
    assert float((ones - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(512)
    flipped = fold(inputs[:, None], torch.ones(1, dtype=torch.int64) << torch.arange(63))  # counter 2^i against 0
    changed = (((flipped ^ base[:, None])[..., None] >> bit) & 1).double().mean((0, 1))
    assert float((changed - 0.5).abs().max()) < 0.02


def test_a_million_draws_hold_no_duplicate():
    draws = uniform(keys(10)[:, None, None], torch.arange(100)[:, None], torch.arange(1000))
    assert draws.numel() == 1_000_000
    assert len(draws.flatten().unique()) == 1_000_000


def test_order_of_counters_matters():
    assert int(fold(torch.tensor(5), 1, 2)) != int(fold(torch.tensor(5), 2, 1))
    assert int(fold(torch.tensor(5), 1)) != int(fold(torch.tensor(5), 1, 0))


def test_broadcast_shapes_and_batch_invariance():
    full = uniform(keys(3)[:, None, None], 2, torch.arange(5)[:, None], torch.arange(7))
    assert full.shape == (3, 5, 7)
    assert full.dtype == torch.float64
    for row in range(3):
        alone = uniform(keys(3)[row], torch.tensor(2), torch.arange(5)[:, None], torch.arange(7))
        assert torch.equal(full[row], alone)
    assert torch.equal(full[:, 1:3, 4], uniform(keys(3)[:, None], 2, torch.arange(1, 3), 4))


def test_inputs_are_left_alone():
    key, counter = keys(3), torch.arange(3)
    uniform(key, counter)
    assert torch.equal(key, keys(3))
    assert torch.equal(counter, torch.arange(3))


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="int64"):
        uniform(torch.tensor([1], dtype=torch.int32), 0)
    with pytest.raises(TypeError, match="int64"):
        uniform(torch.tensor([1]), torch.tensor([0.5]))
