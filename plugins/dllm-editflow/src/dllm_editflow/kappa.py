"""Kappa schedules: kappa(t) is the probability that a column shows its target at time t, from 0 (source) to 1 (target).

Time runs the other way than in masked diffusion: 0 is the source, 1 the text.

Source: Havasi et al., "Edit Flows", arXiv:2506.09018, section 3 (the path) and section 4 (t cubed); ZHZisZZ/dllm at
ca17675, dllm/core/schedulers/kappa.py, whose figures are reproduced.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dllm_core.config import one_of

# Keeps weight(1) finite. The published code has it, so its losses are reproduced to the last digit.
WEIGHT_FLOOR = 1e-6


class KappaSchedule(ABC):
    """An increasing function from [0, 1] to [0, 1]; all methods work element by element on float tensors."""

    @abstractmethod
    def kappa(self, t: Tensor) -> Tensor:
        """The share of columns that show their target at time t."""

    @abstractmethod
    def derivative(self, t: Tensor) -> Tensor:
        """d kappa / d t."""

    @abstractmethod
    def inverse(self, k: Tensor) -> Tensor:
        """The time at which kappa is k."""

    def weight(self, t: Tensor) -> Tensor:
        """kappa'(t) / (1 - kappa(t)): the rate at which a column that still shows its source turns."""
        return self.derivative(t) / (1 - self.kappa(t) + WEIGHT_FLOOR)


class LinearKappa(KappaSchedule):
    """kappa(t) = t."""

    def kappa(self, t: Tensor) -> Tensor:
        return t

    def derivative(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def inverse(self, k: Tensor) -> Tensor:
        return k


class CubicKappa(KappaSchedule):
    """kappa(t) = t^3: edits are late, so most of the training sees texts that are far from done."""

    def kappa(self, t: Tensor) -> Tensor:
        return t**3

    def derivative(self, t: Tensor) -> Tensor:
        return 3 * t**2

    def inverse(self, k: Tensor) -> Tensor:
        return k ** (1 / 3)


class CosineKappa(KappaSchedule):
    """kappa(t) = 1 - cos(pi t / 2)."""

    def kappa(self, t: Tensor) -> Tensor:
        return 1 - torch.cos(math.pi / 2 * t)

    def derivative(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi / 2 * t)

    def inverse(self, k: Tensor) -> Tensor:
        return 2 / math.pi * torch.acos(1 - k)


class PolynomialKappa(KappaSchedule):
    """kappa(t) = (a + 1) t^3 - (a + b + 1) t^2 + (b + 1) t: the published cubic, whose default is a = b = 1."""

    def __init__(self, a: float = 1.0, b: float = 1.0) -> None:
        self.a, self.b = a, b

    def kappa(self, t: Tensor) -> Tensor:
        return (self.a + 1) * t**3 - (self.a + self.b + 1) * t**2 + (self.b + 1) * t

    def derivative(self, t: Tensor) -> Tensor:
        return 3 * (self.a + 1) * t**2 - 2 * (self.a + self.b + 1) * t + (self.b + 1)

    def inverse(self, k: Tensor) -> Tensor:
        low, high = torch.zeros_like(k), torch.ones_like(k)
        for _ in range(60):  # bisection: one bit of the answer each
            middle = (low + high) / 2
            below = self.kappa(middle) < k
            low, high = middle.where(below, low), high.where(below, middle)
        return (low + high) / 2


KAPPAS: dict[str, type[KappaSchedule]] = {
    "linear": LinearKappa,
    "cubic": CubicKappa,
    "cosine": CosineKappa,
    "published": PolynomialKappa,
}


def get_kappa(kappa: str | KappaSchedule) -> KappaSchedule:
    """The schedule of that name; an instance is returned as it is.

    Raises:
        OptionError: no schedule of that name.
    """
    if isinstance(kappa, KappaSchedule):
        return kappa
    one_of("kappa", kappa, KAPPAS)
    return KAPPAS[kappa]()
