"""CART weights: upstream's figures, the definition written out, and what is refused."""

from __future__ import annotations

import pytest
import torch

from dllm_core.errors import OptionError
from dllm_core.noise.corruption import Corruption
from dllm_core.noise.schedules import get_schedule
from dllm_core.objectives.mdlm import MDLMObjective
from dllm_core.objectives.weighting import context_weights, get_weighting


def corruption_of(masked: torch.Tensor) -> Corruption:
    return Corruption(input_ids=torch.zeros_like(masked, dtype=torch.long), masked=masked, time=torch.rand(len(masked)))


@pytest.mark.parametrize(("name", "p"), [("cart", 0.3), ("cart[p:0.1]", 0.1), ("cart[p:0.85]", 0.85)])
def test_weights_are_the_sum_over_visible_tokens(name, p):
    masked = torch.rand(3, 17, generator=torch.Generator().manual_seed(1)) < 0.6
    weights = get_weighting(name)(get_schedule("linear"), corruption_of(masked))
    for row, hidden in enumerate(masked.tolist()):
        for i in range(17):
            seen = [0.5 * p * (1 - p) ** (abs(i - j) - 1) for j in range(17) if not hidden[j]]
            assert weights[row, i].item() == pytest.approx(sum(seen) if hidden[i] else 0.0, abs=1e-6)


def test_weights_are_upstreams():
    hidden, expected = [11, 13, 15], [0.9159999, 0.8200001, 0.4168]
    masked = torch.zeros(1, 16, dtype=torch.bool)
    masked[0, hidden] = True
    weights = context_weights(masked, 0.8)[0, hidden]
    torch.testing.assert_close(weights, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_nothing_hidden_and_nothing_visible_weigh_nothing():
    assert context_weights(torch.zeros(1, 5, dtype=torch.bool), 0.3).tolist() == [[0.0] * 5]
    assert context_weights(torch.ones(1, 5, dtype=torch.bool), 0.3).tolist() == [[0.0] * 5]


@pytest.mark.parametrize("p", ["0", "1", "-0.1", "much", "nan"])
def test_parameter_out_of_range_is_refused(p):
    with pytest.raises(OptionError, match="p of weighting cart must be above 0 and below 1"):
        MDLMObjective(weighting=f"cart[p:{p}]")
