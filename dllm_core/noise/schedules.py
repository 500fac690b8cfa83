"""Noise schedules: alpha(t) is the probability that a token is still clean at time t, from 0 (clean) to 1 (masked).

Source: Sahoo et al., "Simple and Effective Masked Diffusion Language Models", arXiv:2406.07524; Shi et al., "Simplified
and Generalized Masked Diffusion for Discrete Data", arXiv:2406.04329; ZHZisZZ/dllm at ca17675,
dllm/core/schedulers/alpha.py, whose figures are reproduced.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from dllm_core.errors import OptionError, did_you_mean

Time = TypeVar("Time", float, Tensor)

# Keeps weight(0) finite. The published code has it, so its losses are reproduced to the last digit.
_WEIGHT_FLOOR = 1e-6


class Schedule(ABC):
    """A noise schedule. A subclass gives `_alpha` and `_alpha_derivative` for tensors; its constructor takes nothing.

    Times are Python floats or tensors of any shape, and the same kind comes back. Floats are computed in float32 like
    the published code, so that quotas rounded from them agree; float64 tensors keep their precision. Only Python floats
    are checked for their range: to check a tensor would make the host wait for the device.
    """

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor:
        """alpha(t), elementwise; decreasing, 1 at t = 0 and 0 at t = 1."""

    @abstractmethod
    def _alpha_derivative(self, t: Tensor) -> Tensor:
        """d alpha / d t, elementwise."""

    def alpha(self, t: Time) -> Time:
        """The probability that a token is clean at time t.

        Raises:
            OptionError: a float outside [0, 1].
        """
        return _like(t, self._alpha(_time(t)))

    def alpha_derivative(self, t: Time) -> Time:
        """d alpha / d t.

        Raises:
            OptionError: a float outside [0, 1].
        """
        return _like(t, self._alpha_derivative(_time(t)))

    def weight(self, t: Time) -> Time:
        """-alpha'(t) / (1 - alpha(t)): what a masked token's cross-entropy weighs in the bound (about 1 / t if linear).

        Raises:
            OptionError: a float outside [0, 1].
        """
        time = _time(t)
        return _like(t, -self._alpha_derivative(time) / (1 - self._alpha(time) + _WEIGHT_FLOOR))

    def reverse_mask_prob(self, s: Time, t: Time) -> Time:
        """(1 - alpha(s)) / (1 - alpha(t)): the probability that a token masked at time t is still masked at s < t.

        Raises:
            OptionError: floats that are not 0 <= s < t <= 1.
        """
        if not isinstance(s, Tensor) and not isinstance(t, Tensor) and not s < t:
            raise OptionError(f"going back in time needs s < t, got s={s} and t={t}; give the earlier time first")
        ratio = (1 - self._alpha(_time(s))) / (1 - self._alpha(_time(t)))
        return ratio if isinstance(s, Tensor) else _like(t, ratio)


class LinearSchedule(Schedule):
    """alpha(t) = 1 - t."""

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _alpha_derivative(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)


class CosineSchedule(Schedule):
    """alpha(t) = 1 - cos(pi / 2 (1 - t)): fewer tokens are masked in the middle of the way than linearly."""

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - torch.cos(math.pi / 2 * (1 - t))

    def _alpha_derivative(self, t: Tensor) -> Tensor:
        return -(math.pi / 2) * torch.sin(math.pi / 2 * (1 - t))


_SCHEDULES: dict[str, type[Schedule]] = {"linear": LinearSchedule, "cosine": CosineSchedule}


def register_schedule(name: str, cls: type[Schedule]) -> None:
    """Make a schedule available by name to every objective and sampler of this process.

    Raises:
        OptionError: the name is taken by another class, or the class is no `Schedule`.
    """
    if not (isinstance(cls, type) and issubclass(cls, Schedule)):
        raise OptionError(f"schedule {name!r} must be a subclass of dllm_core.noise.Schedule, got {cls!r}")
    if _SCHEDULES.setdefault(name, cls) is not cls:
        raise OptionError(f"schedule {name!r} is already {_SCHEDULES[name].__name__}; register under another name")


def get_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule of that name; an instance is returned as it is.

    Raises:
        OptionError: no schedule of that name; the message names the nearest.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if schedule not in _SCHEDULES:
        raise OptionError(
            f"unknown schedule {schedule!r}.{did_you_mean(schedule, _SCHEDULES)} Known are "
            f"{', '.join(schedule_names())}; register others with dllm.register_schedule"
        )
    return _SCHEDULES[schedule]()


def schedule_names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_SCHEDULES))


def _time(t: float | Tensor) -> Tensor:
    if isinstance(t, Tensor):
        return t.to(torch.promote_types(t.dtype, torch.float32))
    if not 0.0 <= t <= 1.0:
        raise OptionError(f"time {t} is out of range; diffusion time runs from 0 (clean) to 1 (all masked)")
    return torch.tensor(float(t), dtype=torch.float32)


def _like(t: Time, value: Tensor) -> Time:
    return value if isinstance(t, Tensor) else value.item()
