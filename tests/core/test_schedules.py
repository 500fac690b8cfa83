"""Noise schedules: the published figures, the calculus between alpha and its derivative, names and errors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dllm_core.errors import OptionError
from dllm_core.noise import LinearSchedule, Schedule, get_schedule, register_schedule, schedule_names
from dllm_core.noise import schedules as module

# Figures of ZHZisZZ/dllm at ca17675 (torch 2.13.0, float32): a grid of times with the ends, and random pairs s < t.
GOLDENS = load_file(Path(__file__).parent / "goldens" / "alpha_schedules.safetensors")
NAMES = ("linear", "cosine")
TIMES = st.floats(0, 1)


class Quadratic(Schedule):
    """alpha(t) = 1 - t^2, as a user would write it."""

    def _alpha(self, t):
        return 1 - t**2

    def _alpha_derivative(self, t):
        return -2 * t


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(module, "_SCHEDULES", dict(module._SCHEDULES))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantity", ["alpha", "alpha_derivative", "weight"])
def test_published_figures(name, quantity):
    t, want = GOLDENS[f"{name}.t"], GOLDENS[f"{name}.{quantity}"]
    assert float(t.min()) == 0
    assert float(t.max()) == 1
    function = getattr(get_schedule(name), quantity)
    got = function(t)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    # A float is computed in the same precision, so quotas that are rounded from it agree with the published ones.
    assert [function(float(x)) for x in t[:20]] == [pytest.approx(float(x), rel=1e-6, abs=1e-7) for x in got[:20]]


@pytest.mark.parametrize("name", NAMES)
def test_published_reverse_mask_prob(name):
    s, t, want = (GOLDENS[f"{name}.{k}"] for k in ("rev_s", "rev_t", "reverse_mask_prob"))
    torch.testing.assert_close(get_schedule(name).reverse_mask_prob(s, t), want, atol=1e-6, rtol=1e-5)
    assert get_schedule(name).reverse_mask_prob(float(s[0]), float(t[0])) == pytest.approx(float(want[0]), rel=1e-5)
    mixed = get_schedule(name).reverse_mask_prob(float(s[0]), t[:1])
    torch.testing.assert_close(mixed, want[:1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine", Quadratic()])
def test_derivative_is_that_of_alpha(schedule):
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(get_schedule(schedule).alpha(t).sum(), t)
    torch.testing.assert_close(get_schedule(schedule).alpha_derivative(t), slope)


@pytest.mark.parametrize("schedule", ["linear", "cosine", Quadratic()])
def test_alpha_falls_from_one_to_zero(schedule):
    alpha = get_schedule(schedule).alpha(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert float(alpha[0]) == pytest.approx(1)
    assert float(alpha[-1]) == pytest.approx(0)
    assert bool((alpha.diff() < 0).all())


@given(TIMES, TIMES)
def test_masks_only_ever_go_away_going_back(a, b):
    s, t = sorted((a, b))
    for name in NAMES:
        schedule = get_schedule(name)
        if s < t and schedule.alpha(t) < 1:
            assert 0 <= schedule.reverse_mask_prob(s, t) <= 1


def test_linear_weight_is_one_over_t():
    assert get_schedule("linear").weight(0.25) == pytest.approx(4, rel=1e-5)
    assert math.isfinite(get_schedule("linear").weight(0.0))


def test_kind_and_precision_come_back():
    schedule = get_schedule("cosine")
    assert isinstance(schedule.alpha(0.5), float)
    assert schedule.alpha(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64
    assert schedule.alpha(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert schedule.alpha(torch.zeros(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_floats_out_of_range_are_refused(t):
    for call in (get_schedule("linear").alpha, get_schedule("linear").weight):
        with pytest.raises(OptionError, match=r"from 0 \(clean\) to 1"):
            call(t)


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5)])
def test_reverse_times_out_of_order_are_refused(s, t):
    with pytest.raises(OptionError, match=r"s < t|out of range"):
        get_schedule("linear").reverse_mask_prob(s, t)


def test_tensors_are_not_checked_so_the_host_never_waits():
    # A meta tensor has no values: any look at them raises.
    t = torch.empty(3, device="meta")
    for name in NAMES:
        schedule = get_schedule(name)
        for value in (schedule.alpha(t), schedule.weight(t), schedule.reverse_mask_prob(t, t)):
            assert value.device.type == "meta"


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(OptionError, match="Did you mean 'cosine'"):
        get_schedule("cosin")
    with pytest.raises(OptionError, match="Known are cosine, linear"):
        get_schedule("zzz")


@pytest.mark.usefixtures("registry")
def test_register():
    register_schedule("quadratic", Quadratic)
    register_schedule("quadratic", Quadratic)  # a module imported twice registers twice
    assert isinstance(get_schedule("quadratic"), Quadratic)
    assert schedule_names() == ("cosine", "linear", "quadratic")
    with pytest.raises(OptionError, match="already LinearSchedule"):
        register_schedule("linear", Quadratic)
    with pytest.raises(OptionError, match="subclass"):
        register_schedule("instance", Quadratic())


def test_instances_pass_through():
    schedule = LinearSchedule()
    assert get_schedule(schedule) is schedule
