"""The average of the weights: its numbers, where it is used, and that it goes on to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dllm_core.errors import OptionError
from dllm_core.training.ema import WeightAverage


def model() -> nn.Module:
    net = nn.Linear(2, 2)
    nn.init.ones_(net.weight)
    nn.init.zeros_(net.bias)
    net.bias.requires_grad_(False)
    return net


def test_its_numbers():
    net = model()
    average = WeightAverage(net, decay=0.3)
    want = 1.0
    for update, value in enumerate((2.0, 5.0, -1.0), 1):
        with torch.no_grad():
            net.weight.fill_(value)
        average.update()
        decay = min(0.3, (1 + update) / (10 + update))
        want = decay * want + (1 - decay) * value
    assert average.average["weight"].unique().tolist() == pytest.approx([want])
    assert set(average.average) == {"weight"}  # the frozen bias has none
    assert average.updates == 3


def test_it_tends_to_the_mean_of_noisy_weights():
    net, generator = model(), torch.Generator().manual_seed(0)
    average = WeightAverage(net, decay=0.99)
    for _ in range(2000):
        with torch.no_grad():
            net.weight.copy_(3 + torch.randn(2, 2, generator=generator))
        average.update()
    # Variance of the average of independent draws: (1 - d) / (1 + d) = 0.005.
    assert (average.average["weight"] - 3).abs().max() < 5 * 0.005**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_and_back_to_the_last_bit(dtype):
    net = nn.Linear(3, 3).to(dtype)
    own = net.weight.detach().clone()
    average = WeightAverage(net, decay=0.5)
    with torch.no_grad():
        net.weight.add_(1)
    moved = net.weight.detach().clone()
    average.update()
    with average.in_place():
        assert not torch.equal(net.weight, moved)
        assert torch.equal(net.weight, average.average["weight"].to(dtype))
        assert net.weight.dtype == dtype
    assert torch.equal(net.weight, moved)
    assert not torch.equal(own, moved)
    with pytest.raises(RuntimeError, match="inside"), average.in_place():
        raise RuntimeError("inside")
    assert torch.equal(net.weight, moved)


def test_small_steps_are_not_lost_in_bfloat16():
    net = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        net.weight.fill_(1.0)
    average = WeightAverage(net, decay=0.9999)
    average.updates = 10**6
    with torch.no_grad():
        net.weight.fill_(2.0)
    for _ in range(100):
        average.update()
    assert average.average["weight"].item() == pytest.approx(1 + 1 - 0.9999**100, rel=1e-5)


def test_saved_and_loaded(tmp_path):
    net = model()
    average = WeightAverage(net, decay=0.5)
    with torch.no_grad():
        net.weight.copy_(torch.rand(2, 2))
    average.update()
    average.save(tmp_path)
    other = WeightAverage(model(), decay=0.5)
    other.load(tmp_path)
    assert torch.equal(other.average["weight"], average.average["weight"])
    assert other.updates == 1
    with pytest.raises(OptionError, match="is of other weights"):
        WeightAverage(nn.Linear(2, 3), decay=0.5).load(tmp_path)
    with pytest.raises(OptionError, match="was trained without an average"):
        other.load(tmp_path / "absent")
