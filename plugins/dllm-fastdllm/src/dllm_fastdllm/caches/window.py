"""What the policies of this folder share: a window of each row is computed anew, all that is visible is looked at.

Under full attention the keys and values of every position depend on every token, so what is kept of the positions
outside the window is as old as their last computation. A refresh computes everything; its logits decide like those of
any other step, so it costs no step of its own.

Where the window of each row begins and ends follows from the step's number in the block and from the canvas, never
from what the model answered: it is known on the host, and equal whoever else is in the batch.

Shapes: R rows, W canvas width, M open positions, Q positions of one forward, K key positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask

from dllm_core.config import at_least
from dllm_core.models.attention import attention_from
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers.cache import CachePolicy, CacheRun, KeptRun, Plan
from dllm_core.samplers.view import FULL, Layout, View


class Place(NamedTuple):
    """Where one row stands.

    Args:
        start, stop: its block is ``[start, stop)``.
        length: of the row.
        previous: where the block that it wrote before begins; 0 in its first block.
        written: how many blocks it has written before.
        origin: where the first block that it wrote begins; what stands in front is its prompt.
    """

    start: int
    stop: int
    length: int
    previous: int
    written: int
    origin: int


NOWHERE = Place(0, 0, 0, 0, -1, 0)  # before its first block


@dataclass(frozen=True, kw_only=True)
class WindowPolicy(CachePolicy):
    """A policy that computes a window of each row.

    Args:
        refresh_every: compute everything anew every so many steps of a block, beside the refreshes that the policy has
            by itself; 1 is no cache, to float precision. None: only those.
        borrow_lead: for right-shifted families, take the scores of a block's first token from the position behind it
            where the one before it is not computed, as ZHZisZZ/dllm's port does; it is there to compare with published
            runs. False: they are carried over from the step that last computed that position.

    Raises:
        OptionError: a refresh less often than every step that counts, below 1.
    """

    refresh_every: int | None = None
    borrow_lead: bool = False

    needs_kv_cache: ClassVar[bool] = True
    steps_are_planned: ClassVar[bool] = True
    serves: ClassVar[tuple[str, ...]] = (FULL,)

    def __post_init__(self) -> None:
        if self.refresh_every is not None:
            at_least("refresh_every", self.refresh_every, 1)

    def start(self, denoiser: Denoiser, rows: int, length: int) -> CacheRun:
        return WindowRun(self, denoiser, rows, length)

    def window(self, step: int, place: Place) -> tuple[int, int]:
        """First position that a step computes and the one after its last; it holds the row's block.

        Args:
            step: of the block, from 0.
            place: where the row stands.
        """
        raise NotImplementedError

    def refreshes(self, step: int) -> bool:
        """Whether ``refresh_every`` asks for a refresh in that step of a block."""
        return self.refresh_every is not None and step % self.refresh_every == 0


def keys_there(layout: Layout, queries: int, denoiser: Denoiser) -> torch.Tensor | BlockMask | None:
    """Everyone may look at every key that a row has, in the form that the model takes; None where all rows have all.

    Args:
        layout: where the rows stand.
        queries: Q.
    """
    if len(set(layout.lengths)) == 1 and not layout.hides:
        return None
    device, width = layout.ends.device, max(layout.lengths)
    there = layout.there(torch.arange(width, device=device))  # (R, K)

    def allowed(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return there[row, key]

    implementation = denoiser.attention_implementation
    return attention_from(
        allowed, rows=len(there), queries=queries, keys=width, implementation=implementation, device=device
    )


def _span(window: tuple[int, int], reach: int, length: int) -> tuple[int, int, int, int]:
    """What a suffix window leaves of a row's window: its begin and end, how many positions, and the last of them.

    Behind the reach there is only the row's last position, which follows on the others where the window holds it.
    """
    begin, stop = window
    end = min(stop, reach)
    has_tail = end < stop == length
    return begin, end, end - begin + has_tail, length - 1 if has_tail else end - 1


class WindowRun(KeptRun):
    """Keys and values of the whole canvas, those of the window overwritten in place at every step."""

    def __init__(self, policy: WindowPolicy, denoiser: Denoiser, rows: int, length: int) -> None:
        super().__init__(denoiser, rows, length)
        self.policy = policy
        self.places: list[Place] = [NOWHERE] * rows
        self.windows: list[tuple[int, int]] = []

    def renumber(self, rows: torch.Tensor) -> None:
        super().renumber(rows)
        self.places = [self.places[row] for row in rows.tolist()]

    def plan_of(self, view: View) -> Plan:
        if view.step == 0:
            self._open(view.layout)
        windows = [
            self.policy.window(view.step, place) if masks else (stop, stop)
            for place, masks, stop in zip(self.places, view.layout.masks, view.layout.stops, strict=True)
        ]
        if self.plan is None or windows != self.windows:
            self.windows = windows
            return self._plan_from(view, windows)
        return self.plan

    def _open(self, layout: Layout) -> None:
        """Note where each row stands; one that only waits for others, without a mask in this block, stays."""
        self.plan, spans = None, zip(layout.starts, layout.stops, layout.lengths, layout.masks, strict=True)
        for row, (start, stop, length, masks) in enumerate(spans):
            if masks:
                before = self.places[row]
                origin = start if before is NOWHERE else before.origin
                self.places[row] = Place(start, stop, length, before.start, before.written + 1, origin)

    def _plan_from(self, view: View, windows: Sequence[tuple[int, int]]) -> Plan:
        """Of each row the positions of its window, which a suffix window may cut."""
        layout, device = view.layout, view.layout.ends.device
        spans = [_span(*each) for each in zip(windows, layout.reaches, layout.lengths, strict=True)]
        begins, ends, counts, lasts = zip(*spans, strict=True)
        told = torch.tensor([begins, ends, counts, lasts, layout.starts, layout.stops], device=device)  # (6, R)
        begin, end, count, last, start, stop = told[..., None]  # (R, 1) each
        columns = torch.arange(max(counts), device=device)  # (Q,)
        positions = torch.where(begin + columns < end, begin + columns, last)  # (R, Q)
        return Plan(
            begin,
            start,
            stop,
            positions,
            slots=positions.where(columns < count, self.cache.nowhere),
            pattern=keys_there(layout, positions.shape[1], self.denoiser),
            reads=max(layout.lengths),
            carries=any(a < b for a, b in zip(begins, layout.starts, strict=True)),
            borrows=self.policy.borrow_lead,
            spares=True,
            guided=layout.guided,
        )
