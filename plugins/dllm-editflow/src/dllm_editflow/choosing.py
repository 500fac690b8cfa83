"""Which edits are made with one pass of the model: the four modes of the sampler, from rates to what fires.

Pure functions. Rates are those that are allowed, 0 elsewhere. Noise is a function of row, step and position, so a row
draws the same alone and in any batch.

Source: Havasi et al., "Edit Flows", arXiv:2506.09018, appendix C (tau-leaping); Gillespie, J. Phys. Chem. 81 (1977)
2340 (next event).

Shapes: R rows, L tokens, K steps of the grid, C steps looked at together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm_core.noise.counter import uniform
from dllm_editflow.apply import KEPT
from dllm_editflow.kinds import DELETE, INSERT, SUBSTITUTE

# What a draw is for; 0 to 15 are the core's.
CHANGE, WHICH_CHANGE, INSERTION, SUBSTITUTE_TOKEN, INSERT_TOKEN, WAIT, WHICH, BACK, PART = range(16, 25)
DRAWS_AT_ONCE = 2**21


class Moment(NamedTuple):
    """Where the rows are.

    Args:
        keys: (R,) int64, of the noise.
        at: (R,) int64, the next step of each row.
        clock: (R,) float64, -log(1 - kappa), in which a model without time has constant rates.
    """

    keys: Tensor
    at: Tensor
    clock: Tensor


class Part(NamedTuple):
    """Where the rows are in a step that may be divided.

    Args:
        left: (R,) float64, of the columns that had not turned when a row's step began, the share that has not yet; 1
            where a step is not divided.
        divisible: (R,) bool, rows whose step may be divided now.
    """

    left: Tensor
    divisible: Tensor


class Chosen(NamedTuple):
    """What fires.

    Args:
        change: (R, L) int64, `KEPT`, `SUBSTITUTE` or `DELETE`.
        insert: (R, L) bool.
        at: (R,) int64, the step in which it does.
        clock: (R,) float64, when.
        ended: (R,) bool, rows in which nothing will fire any more.
        left: (R,) float64, as of `Part`: above 0 where a row goes on with this step; None: with the next, all of them.
    """

    change: Tensor
    insert: Tensor
    at: Tensor
    clock: Tensor
    ended: Tensor
    left: Tensor | None = None


def tau_leap(rates: Tensor, moment: Moment, factors: Tensor, horizon: int, part: Part | None = None) -> Chosen:
    """Every edit with its probability in the step, all at once.

    Behind one token many may be missing, of which a step inserts one. Where its factor would make an insertion more
    than certain, a divisible row goes only as far as makes it certain, and is asked again.

    Args:
        rates: (R, L, 3) float64.
        factors: (K,) float64, of the grid's steps.
        horizon: how many steps the rates hold for: 1, or all that are left where the model knows no time. Then each row
            goes on to its next step in which anything fires, which is where it would have come to step by step.
        part: None: no step is divided, and probabilities above 1 are 1.
    """
    steps = len(factors)
    change_rate = rates[..., SUBSTITUTE] + rates[..., DELETE]  # (R, L)
    at, change, insert, left = _first_firing(change_rate, rates[..., INSERT], moment, factors, horizon, part)
    positions = torch.arange(rates.shape[1], device=rates.device)
    draws = uniform(moment.keys[:, None], WHICH_CHANGE, 0, at[:, None], positions)  # (R, L)
    delete = draws * change_rate < rates[..., DELETE]
    kinds = torch.where(delete, DELETE, SUBSTITUTE).where(change, KEPT)
    return Chosen(kinds, insert, at, moment.clock, at >= steps, left)


def _first_firing(
    change_rate: Tensor, insert_rate: Tensor, moment: Moment, factors: Tensor, horizon: int, part: Part | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The first step of each row in which anything fires or that is divided, what fires, and what is left of the step:
    (R,), (R, L) bool, (R, L) bool, (R,)."""
    last = len(factors)
    factors = torch.nn.functional.pad(factors, (0, 1))  # nothing fires behind the end
    start = moment.at.clamp(max=last)
    together = max(1, min(horizon, DRAWS_AT_ONCE // change_rate.numel()))  # C
    at, open_ = torch.full_like(start, last), torch.ones_like(start, dtype=torch.bool)
    left = None if part is None else torch.zeros_like(part.left)
    change = insert = torch.zeros_like(change_rate, dtype=torch.bool)
    for offset in range(0, horizon, together):
        ahead = torch.arange(offset, offset + together, device=start.device)
        steps = (start[:, None] + ahead).clamp(max=last)  # (R, C)
        factor, rest = _divided(factors[steps], steps == start[:, None], insert_rate, part)  # (R, C), (R, C)
        fired = [
            _fired(purpose, rate, factor, steps, moment.keys)  # (R, C, L)
            for purpose, rate in ((CHANGE, change_rate), (INSERTION, insert_rate))
        ]
        if horizon == 1:  # the row takes this step, whether anything fires or not
            return start, fired[0][:, 0], fired[1][:, 0], None if rest is None else rest[:, 0]
        stops = (fired[0] | fired[1]).any(-1)  # (R, C)
        stops = stops if rest is None else stops | (rest > 0)
        first = stops.long().argmax(1)[:, None]  # (R, 1)
        found = open_ & stops.any(1)
        at = steps.gather(1, first)[:, 0].where(found, at)
        left = left if rest is None else rest.gather(1, first)[:, 0].where(found, left)
        now = (each.take_along_dim(first[..., None], 1)[:, 0] for each in fired)  # (R, L)
        change, insert = (new.where(found[:, None], old) for new, old in zip(now, (change, insert), strict=True))
        open_ = open_ & ~found
        if not bool(open_.any()):
            break
    return at, change, insert, left


def _fired(purpose: int, rate: Tensor, factor: Tensor, steps: Tensor, keys: Tensor) -> Tensor:
    """Which edits of one kind (R, L) fire in each of the steps (R, C); (R, C, L) bool."""
    positions = torch.arange(rate.shape[1], device=rate.device)
    return uniform(keys[:, None, None], purpose, 0, steps[..., None], positions) < factor[..., None] * rate[:, None]


def _divided(whole: Tensor, is_own: Tensor, insert_rate: Tensor, part: Part | None) -> tuple[Tensor, Tensor | None]:
    """The factors of steps (R, C) as rows take them, and what is then left of each step, 0 where all of it is done.

    Args:
        is_own: (R, C) bool, the row's own next step, which may have begun.
    """
    if part is None:
        return whole, None
    left = part.left[:, None].where(is_own, 1.0)  # (R, C)
    factor = 1 - (1 - whole) / left
    certain = 1 / insert_rate.amax(1, keepdim=True)  # (R, 1), infinite where nothing is inserted
    cut = part.divisible[:, None] & (certain < factor)
    factor = torch.where(cut, certain, factor)
    return factor, (left * (1 - factor)).where(cut, 0.0)


def next_event(rates: Tensor, moment: Moment, end: float) -> Chosen:
    """The next edit of the exact process, one a row; none where it would come after the clock's ``end``."""
    shares = rates.flatten(1).cumsum(1)  # (R, 3L)
    total = shares[:, -1]  # (R,)
    clock = moment.clock - uniform(moment.keys, WAIT, 0, moment.at, 0).log() / total
    ended = ~(clock < end)  # also where the total is 0
    which = uniform(moment.keys, WHICH, 0, moment.at, 0) * total
    chosen = torch.searchsorted(shares, which[:, None], right=True)[:, 0].clamp(max=shares.shape[1] - 1)
    return _single(rates, chosen, ~ended, moment)._replace(clock=clock.clamp(max=end), ended=ended)


def surest(rates: Tensor, moment: Moment, lowest: float) -> Chosen:
    """The edit with the highest rate, one a row; none where that is below ``lowest``. Ties go to the left."""
    highest, chosen = rates.flatten(1).max(1)  # (R,)
    fires = highest >= lowest
    return _single(rates, chosen, fires, moment)._replace(ended=~fires)


def sure_enough(rates: Tensor, moment: Moment, lowest: float) -> Chosen:
    """Every edit whose rate is at least ``lowest``; where a token could be substituted and deleted, the likelier."""
    delete = rates[..., DELETE] > rates[..., SUBSTITUTE]
    fires = rates[..., : DELETE + 1].amax(-1) >= lowest  # (R, L)
    change = torch.where(delete, DELETE, SUBSTITUTE).where(fires, KEPT)
    insert = rates[..., INSERT] >= lowest
    ended = ~(fires | insert).any(1)
    return Chosen(change, insert, moment.at, moment.clock, ended)


def turned_back(done: Tensor, inserted: Tensor, moment: Moment, factor: float) -> Chosen:
    """A step of the reversed flow: what has been done is undone, each with probability ``factor``.

    Args:
        done: (R, L) bool, tokens that edits have put there.
        inserted: (R, L) bool, those of them that had no token before; they are deleted. The others become masks again.
    """
    positions = torch.arange(done.shape[1], device=done.device)
    fires = uniform(moment.keys[:, None], BACK, 0, moment.at[:, None], positions) < factor
    kinds = torch.where(inserted, DELETE, SUBSTITUTE).where(fires & done, KEPT)
    nothing = torch.zeros_like(done)
    return Chosen(kinds, nothing, moment.at, moment.clock, nothing[:, 0])


def keep_best(chosen: Chosen, rates: Tensor, room: Tensor, *, insertions_only: bool) -> Chosen:
    """At most ``room`` (R,) of the edits of each row, those with the highest rates; ties go to the left."""
    change_rate = rates[..., : DELETE + 1].gather(-1, chosen.change.clamp(min=0)[..., None])[..., 0]  # (R, L)
    fired = torch.stack([(chosen.change != KEPT) & (not insertions_only), chosen.insert], -1).flatten(1)  # (R, 2L)
    weight = torch.stack([change_rate, rates[..., INSERT]], -1).flatten(1).masked_fill(~fired, -1.0)
    order = weight.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(order.shape[1], device=order.device)
    rank = torch.zeros_like(order).scatter_(1, order, ranks.expand_as(order))
    kept = (fired & (rank < room[:, None])).unflatten(1, (-1, 2))  # (R, L, 2)
    change = chosen.change if insertions_only else chosen.change.where(kept[..., 0], KEPT)
    return chosen._replace(change=change, insert=kept[..., 1])


def _single(rates: Tensor, chosen: Tensor, fires: Tensor, moment: Moment) -> Chosen:
    """One edit a row, by its number among the row's (L, 3) rates."""
    position, kind = chosen // 3, chosen % 3  # (R,)
    here = torch.arange(rates.shape[1], device=rates.device) == position[:, None]  # (R, L)
    here = here & fires[:, None]
    inserts = kind == INSERT
    change = kind[:, None].where(here & ~inserts[:, None], KEPT)
    return Chosen(change, here & inserts[:, None], moment.at, moment.clock, ~fires)
