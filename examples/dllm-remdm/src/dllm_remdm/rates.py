"""The probabilities of a step: how likely a mask is written, and a written token masked again.

From time t (noisier) to s < t a written token is masked again with probability sigma, and a masked one is written with
probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). For every sigma up to (1 - alpha_s) / alpha_t the expected
share of masks at time s is 1 - alpha_s, as without re-masking, so a model trained as usual serves.

Source: Wang et al., "Remasking Discrete Diffusion Models with Inference-Time Scaling", arXiv 2503.00307, section 3
(the posterior and its bound) and section 4 (cap, rescale, conf, loop); kuleshov-group/remdm, diffusion.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from dllm_core.noise import Schedule, get_schedule
from torch import Tensor

# The ways to choose sigma, each with the eta of the published scripts.
ETAS = {"cap": 0.008, "rescale": 0.015, "conf": 1.0, "loop": 0.02}


@dataclass(frozen=True)
class Rates:
    """One step.

    Args:
        share: of tokens that are expected to be written after the step.
        write: probability that a mask is written.
        again: sigma, the probability that a written token is masked again; with ``conf`` that of all of them together.
    """

    share: float
    write: float
    again: float


@dataclass(frozen=True)
class Loop(Schedule):
    """A noise schedule that stands still for a while: time goes on from ``t_on`` to ``t_off``, alpha does not.

    Args:
        base: what happens before and after, each squeezed into the time that it has.
        alpha_on: alpha meanwhile.
    """

    base: Schedule
    t_on: float
    t_off: float
    alpha_on: float

    def _alpha(self, t: Tensor) -> Tensor:
        before = self.alpha_on * self.base.alpha(((t - self.t_on) / (1 - self.t_on)).clamp(min=0))
        after = 1 - (1 - self.alpha_on) * (1 - self.base.alpha((t / self.t_off).clamp(max=1)))
        return torch.where(t > self.t_on, before, after)

    def _alpha_derivative(self, t: Tensor) -> Tensor:
        before = self.alpha_on * self.base.alpha_derivative(((t - self.t_on) / (1 - self.t_on)).clamp(min=0))
        after = (1 - self.alpha_on) * self.base.alpha_derivative((t / self.t_off).clamp(max=1))
        slopes = torch.where(t > self.t_on, before / (1 - self.t_on), after / self.t_off)
        return torch.where((t > self.t_off) & (t <= self.t_on), torch.zeros_like(t), slopes)


def noise_schedule(schedule: str, remask: str, t_on: float, t_off: float, alpha_on: float) -> Schedule:
    """The schedule of the masks; with ``loop`` it stands still for a while."""
    noise = get_schedule(schedule)
    return Loop(noise, t_on, t_off, alpha_on) if remask == "loop" else noise


@lru_cache(maxsize=1024)
def rates(
    steps: int, schedule: str, remask: str, eta: float, t_on: float, t_off: float, alpha_on: float
) -> tuple[Rates, ...]:
    """The rates of every step, from time 1 to 0."""
    noise = noise_schedule(schedule, remask, t_on, t_off, alpha_on)
    return tuple(_step(noise, k / steps, (k - 1) / steps, remask, eta, t_on, t_off) for k in range(steps, 0, -1))


def _step(noise: Schedule, t: float, s: float, remask: str, eta: float, t_on: float, t_off: float) -> Rates:
    alpha_t, alpha_s = noise.alpha(t), noise.alpha(s)
    sigma = sigma_at(remask, eta, alpha_t, alpha_s)
    if remask == "loop" and not t_off < t <= t_on:
        sigma = 0.0
    reveal = 1 - noise.reverse_mask_prob(s, t)
    # The published (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), as what is revealed anyway and what makes up for
    # the tokens that are masked again.
    write = min(1.0, reveal + sigma * alpha_t / (1 - alpha_t))
    return Rates(alpha_s, write, sigma)


def sigma_at(remask: str, eta: float, alpha_t: float, alpha_s: float) -> float:
    """sigma, at most (1 - alpha_s) / alpha_t, beyond which the share of masks could not be kept."""
    most = 1.0 if alpha_t == 0 else min(1.0, (1 - alpha_s) / alpha_t)
    return min(eta, most) if remask in ("cap", "loop") else eta * most
