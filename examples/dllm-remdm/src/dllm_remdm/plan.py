"""How many tokens each step writes, and how many it masks again: plain numbers, planned before a block begins.

Each token is written or masked again on its own, so only the numbers are random until the positions are drawn; and
numbers that are known beforehand spare the loop from asking the device whether a block is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dllm_remdm.rates import Rates

Draw = Callable[[str, int, int, float], int]
"""(``"write"`` or ``"again"``, step, n, probability) -> how many of n."""


class Counts(NamedTuple):
    """One step: masks before it, how many of them it writes, and how many earlier tokens it masks again."""

    masks: int
    write: int
    again: int


def drawn(masks: int, rates: Sequence[Rates], draw: Draw, *, one_in_all: bool) -> Iterator[Counts]:
    """The published law: every mask and every written token decides on its own.

    Args:
        one_in_all: the rate of masking again is that of all tokens together (``conf``).
    """
    left = masks
    for step, rate in enumerate(rates):
        written = masks - left
        counts = Counts(
            left,
            draw("write", step, left, rate.write),
            draw("again", step, min(written, 1) if one_in_all else written, rate.again),
        )
        yield counts
        left += counts.again - counts.write
    if left:  # a registered schedule that does not reach alpha(0) = 1
        yield Counts(left, left, 0)


def rounded(counts: Sequence[int], rates: Sequence[Rates], *, one_in_all: bool) -> Iterator[Counts]:
    """Expectations instead of draws: as many more are written as are masked again, so the share of masks is kept.

    Args:
        counts: what the core's sampler would write, step by step and without idle steps; at most as many as `rates`.
    """
    net = due_times(counts, rates)
    left, due = sum(counts), 0.0
    written = 0
    for reveal, rate in zip(net, rates, strict=True):
        due += rate.again * (min(written, 1) if one_in_all else written)
        whole = int(due + 1e-9)  # what remains is carried on: a low rate would be rounded away in every step
        due -= whole
        again = min(whole, left - reveal, written)
        yield Counts(left, reveal + again, again)
        left, written = left - reveal, written + reveal


def due_times(counts: Sequence[int], rates: Sequence[Rates]) -> list[int]:
    """The counts, each in the step by which the schedule expects it, 0 in the steps between.

    Where there are more steps than tokens it decides how long a token stands and may be masked again.
    """
    net, done, total = [0] * len(rates), 0, sum(counts)
    step = -1
    for number, count in enumerate(counts):
        done += count
        last = len(rates) - (len(counts) - number)  # room for the others
        step += 1
        while step < last and total * rates[step].share < done - 0.5:
            step += 1
        net[step] = count
    return net


def without_idle(plan: Iterator[Counts]) -> list[Counts]:
    """The steps in which something happens: to the model time is nothing, so the others would change nothing."""
    return [counts for counts in plan if counts.write or counts.again]
