"""Compute the prompt seldom, the response now and then, and between only what has been moving.

Shapes: R rows, L positions of the cache, Q positions of one forward, E positions that are computed beside the block,
G key and value heads, C head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm_core.config import at_least, within
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers.cache import CacheRun, Plan
from dllm_core.samplers.view import Answer, Layout, View
from dllm_fastdllm.caches.window import Place, WindowPolicy, WindowRun, keys_there


@dataclass(frozen=True, kw_only=True)
class Interval(WindowPolicy):
    """Refreshes the response at the start of a block and every few steps, and the prompt at every few blocks.

    Between refreshes it computes the block and the part of the response whose values, in the last layer, turned most at
    the last refresh.

    Args:
        prompt_every: blocks from one refresh of the prompt to the next.
        response_every: steps of a block from one refresh of the response to the next.
        moving_share: the part of the response that is computed beside the block, from 0 to 1.

    Raises:
        OptionError: a value out of range.

    Source: dLLM-Cache (arXiv 2506.06295): long intervals for the prompt, short ones for the response, and partial
    updates guided by the similarity of values. There every layer picks its own tokens at every step, and the prompt's
    interval counts steps; here one choice serves all layers until the next refresh, which needs no change to any
    model, and blocks are counted, so that a row does not depend on how many steps the others of its batch take.
    """

    steps_are_planned: ClassVar[bool] = False  # a refresh compares what it computes with what was kept
    prompt_every: int = 4
    response_every: int = 6
    moving_share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("prompt_every", self.prompt_every, 1)
        at_least("response_every", self.response_every, 1)
        within("moving_share", self.moving_share, 0.0, 1.0)

    def start(self, denoiser: Denoiser, rows: int, length: int) -> CacheRun:
        return IntervalRun(self, denoiser, rows, length)

    def window(self, step: int, place: Place) -> tuple[int, int]:
        if self.refreshes(step) or (step == 0 and place.written % self.prompt_every == 0):
            return 0, place.length
        if step % self.response_every == 0:
            return place.origin, place.length
        return place.start, place.stop

    def between(self, step: int) -> bool:
        """Whether that step of a block computes less than the response."""
        return not self.refreshes(step) and step % self.response_every != 0


class IntervalRun(WindowRun):
    """Notes at every refresh how far each position's values turned, and computes those that turned most."""

    policy: Interval
    turned: torch.Tensor | None = None  # (R, L) 1 - cosine similarity

    def by_plan(self, view: View, plan: Plan) -> Answer:
        between = self.policy.between(view.step)
        rows = self.cache.among(len(view.input_ids))
        before = None if between or not self.cache.layers else self.cache.layers[-1].values[rows].clone()
        answer = super().by_plan(view, plan)
        if not between:
            after = self.cache.layers[-1].values[rows]
            self.turned = how_far(after if before is None else before, after)
        return answer

    def renumber(self, rows: torch.Tensor) -> None:
        super().renumber(rows)
        self.turned = None if self.turned is None else self.turned[rows]

    def plan_of(self, view: View) -> Plan:
        before, plan = self.plan, super().plan_of(view)
        return self._with_moving(plan, view.layout) if self.policy.between(view.step) and plan is not before else plan

    def _with_moving(self, plan: Plan, layout: Layout) -> Plan:
        """The block, and behind it in the forward what turned most in the rest of the response."""
        counts = [self._moving(*each) for each in zip(self.places, layout.reaches, layout.masks, strict=True)]
        if not any(counts):
            return plan
        device = layout.ends.device
        origins = [place.origin for place in self.places]
        told = torch.tensor([origins, layout.reaches, counts], device=device)  # (3, R)
        origin, reach, count = told[..., None]  # (R, 1) each
        columns = torch.arange(self.turned.shape[1], device=device)
        others = (columns >= origin) & (columns < reach) & ((columns < plan.start) | (columns >= plan.stop))  # (R, L)
        order = self.turned.masked_fill(~others, -torch.inf).argsort(dim=1, descending=True, stable=True)
        moving = order[:, : max(counts)].minimum(layout.ends[:, None] - 1)  # (R, E)
        there = torch.arange(max(counts), device=device) < count
        positions = torch.cat([plan.positions, moving], 1)  # (R, Q)
        slots = torch.cat([plan.slots, moving.where(there, self.cache.nowhere)], 1)
        pattern = keys_there(layout, positions.shape[1], self.denoiser)
        return plan._replace(positions=positions, slots=slots, pattern=pattern)

    def _moving(self, place: Place, reach: int, masks: int) -> int:
        """How many positions of a row are computed beside its block; the last position of the canvas never is."""
        rest = reach - place.origin - (place.stop - place.start)
        return math.ceil(self.policy.moving_share * rest) if masks else 0


def how_far(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """1 - cosine similarity of each position's values, all heads together. Two (R, G, L + 1, C) -> (R, L)"""
    old, new = (each[:, :, :-1].transpose(1, 2).flatten(2).float() for each in (before, after))  # (R, L, G C)
    return 1 - torch.nn.functional.cosine_similarity(old, new, dim=-1)
