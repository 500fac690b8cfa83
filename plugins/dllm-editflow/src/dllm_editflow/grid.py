"""The steps of tau-leaping: how far each goes, and at which time the model is asked.

A step from kappa k to k' turns each column that still shows its source with probability (k' - k) / (1 - k). A model's
rates times that factor are the probabilities of the edits. On a grid even in kappa the factors are 1 / K, 1 / (K - 1),
..., 1 whatever kappa is: kappa decides only which time the model is told.

Source: Havasi et al., arXiv:2506.09018, appendix C (first-order steps) and section 3 (reverse rates); for the published
grid ZHZisZZ/dllm at ca17675, dllm/pipelines/editflow/sampler.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from dllm_editflow.kappa import KappaSchedule, get_kappa
from dllm_editflow.options import EditFlowOptions


class Move(NamedTuple):
    """One step of the grid.

    Args:
        factor: times a rate, the probability of its edit in this step.
        time: what the model is told.
        kappa: at the beginning of the step.
        back: a step of the reversed flow.
    """

    factor: float
    time: float
    kappa: float
    back: bool = False


def moves(options: EditFlowOptions, steps: int) -> list[Move]:
    """The steps of the grid that the options describe."""
    schedule = get_kappa(options.kappa)
    if options.grid == "time":
        return [_euler(schedule, step / steps, 1 / steps) for step in range(steps)]
    start = 1 - options.strength
    ends = [start + (1 - start) * step / steps for step in range(steps)] + [1.0]
    if options.correction:
        return [move for pair in itertools.pairwise(ends) for move in _there_and_back(schedule, options, *pair)]
    return [Move(1 / (steps - step), _at(schedule.inverse, kappa), kappa) for step, kappa in enumerate(ends[:-1])]


def _euler(schedule: KappaSchedule, time: float, step: float) -> Move:
    return Move(step * _at(schedule.weight, time), time, _at(schedule.kappa, time))


def _there_and_back(schedule: KappaSchedule, options: EditFlowOptions, start: float, stop: float) -> Iterator[Move]:
    """Forward by 1 + alpha of the step's time, and back to its end.

    What a step forward has turned too much is turned back column by column: of those that show their target at
    ``beyond`` the share (beyond - stop) / beyond would not at ``stop``.
    """
    scale, rise, fall = options.correction
    now, then = _at(schedule.inverse, start), _at(schedule.inverse, stop)
    alpha = scale * now**rise * (1 - now) ** fall
    beyond = _at(schedule.kappa, min(1.0, now + (then - now) * (1 + alpha)))
    if stop == 1 or beyond <= stop:
        yield Move((stop - start) / (1 - start), now, start)
        return
    yield Move((beyond - start) / (1 - start), now, start)
    yield Move((beyond - stop) / beyond, then, beyond, back=True)


def _at(function: object, value: float) -> float:
    return float(function(torch.tensor(value, dtype=torch.float64)))
