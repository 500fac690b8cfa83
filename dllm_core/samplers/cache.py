"""Cache policies: which positions of the canvas each step computes anew, and what is kept between steps.

Shapes: R rows, W canvas width, M open positions, Q positions of one forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.attention.flex_attention import BlockMask

from dllm_core.errors import OptionError
from dllm_core.models.cache import BlockCache
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers.view import BLOCK_CAUSAL, FULL, Answer, Layout, View, in_the_models_form


class CacheRun:
    """What a policy keeps during one run; the loop asks it for the logits of every step.

    Args:
        denoiser: the model.
        rows: how many rows the run begins with; guided runs hold every row twice.
        length: of the longest row.
    """

    cache_bytes: int = 0  # the most memory that it will hold

    def __init__(self, denoiser: Denoiser, rows: int, length: int) -> None:
        self.denoiser, self.rows, self.length = denoiser, rows, length

    def logits(self, view: View) -> Answer:
        """Logits at the open positions of a step, and what they cost."""
        raise NotImplementedError

    def keep(self, rows: torch.Tensor) -> None:
        """Some rows are finished: forget all but these. (R',) int64 on the CPU, numbers among the present rows"""


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """A policy is a frozen dataclass; its fields are the options that it adds to the sampler's.

    Nothing that belongs to a run is kept on the policy: `start` makes a `CacheRun` for it.

    Attributes:
        needs_kv_cache: only families that declare ``supports_kv_cache`` can use it.
        serves: the kinds of attention that it is right for, ``"full"`` and ``"block_causal"``.
        computes_anew: every step's scores come from a forward of that step. A policy that hands out scores of an
            earlier step again has no history to offer, so rules that compare steps refuse it.
    """

    needs_kv_cache: ClassVar[bool] = False
    computes_anew: ClassVar[bool] = True
    serves: ClassVar[tuple[str, ...]] = (FULL, BLOCK_CAUSAL)

    def start(self, denoiser: Denoiser, rows: int, length: int) -> CacheRun:
        """Open a run; arguments as of `CacheRun`."""
        raise NotImplementedError


class NoCacheRun(CacheRun):
    """Keeps nothing."""

    def logits(self, view: View) -> Answer:
        return view.computed_anew(self.denoiser)


@dataclass(frozen=True, kw_only=True)
class NoCache(CachePolicy):
    """Every step computes all that is visible: exact."""

    def start(self, denoiser: Denoiser, rows: int, length: int) -> CacheRun:
        return NoCacheRun(denoiser, rows, length)


@dataclass(frozen=True)
class _Plan:
    """What one forward computes: of each row the positions from ``begin`` to the end of its block.

    Args:
        begin, start: (R, 1) int64, first position computed, first position of the block.
        positions: (R, Q) int64; shorter rows repeat their last one.
        slots: (R, Q) int64, where their keys and values go.
        pattern: (R, 1, Q, K), in the form that the model takes.
    """

    begin: torch.Tensor
    start: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    pattern: torch.Tensor | BlockMask

    @staticmethod
    def of(layout: Layout, begins: Sequence[int], nowhere: int, denoiser: Denoiser) -> _Plan:
        spans = torch.tensor([begins, layout.starts, layout.stops], device=layout.ends.device)[..., None]  # (3, R, 1)
        begin, start, stop = spans
        width = max(stop - begin for begin, stop in zip(begins, layout.stops, strict=True))
        columns = begin + torch.arange(width, device=begin.device)
        positions = columns.minimum(stop - 1)
        slots = columns.where(columns < stop, nowhere)
        pattern = in_the_models_form(layout.pattern(positions, max(layout.stops)), denoiser)
        return _Plan(begin, start, positions, slots, pattern)


class FinishedBlocksRun(CacheRun):
    """Keys and values of everything in front of the block stay; those of the block are overwritten at every step.

    The first step of a block computes the block before it once more, whose last tokens were still masks when it was
    last computed, and the prompt before the first block: no pass of its own is spent on either.
    """

    def __init__(self, denoiser: Denoiser, rows: int, length: int) -> None:
        super().__init__(denoiser, rows, length)
        self.cache_bytes = BlockCache.bytes_needed(denoiser.bare_model.config, rows, length, denoiser.dtype)
        check_memory(self.cache_bytes, rows, length, denoiser.device)
        self.cache = BlockCache(rows, length)
        self.final = [0] * rows  # tokens of each row whose keys and values will not change any more
        self.plan: _Plan | None = None
        self.lead: torch.Tensor | None = None  # (R, V) scores of each block's first token, for right-shifted families

    def logits(self, view: View) -> Answer:
        if view.step < 2:  # later steps compute what the second one does
            begins = self.final if view.step == 0 else view.layout.starts
            self.plan = _Plan.of(view.layout, begins, self.cache.nowhere, self.denoiser)
        plan, at = self.plan, view.at
        carries = view.step == 0 and self.denoiser.logits_are_shifted
        if carries:  # the position before the block is computed now, and in none of the block's later steps
            at = torch.cat([plan.start, at], 1)
        at = (at - plan.begin).clamp(0, plan.positions.shape[1] - 1)  # only filler lies outside
        self.cache.place(plan.slots, max(view.layout.stops))
        logits = self.denoiser.logits(
            view.input_ids.gather(1, plan.positions),
            at=at,
            position_ids=plan.positions,
            attention=plan.pattern,
            cache=self.cache,
            lead=self.lead,
        )
        self.final = list(view.layout.starts)
        if carries:
            self.lead, logits = logits[:, 0], logits[:, 1:]
        return Answer(logits, plan.positions.numel(), at.numel())

    def keep(self, rows: torch.Tensor) -> None:
        self.cache.select(rows)
        self.final = [self.final[row] for row in rows.tolist()]
        self.lead = None if self.lead is None else self.lead[rows]


@dataclass(frozen=True, kw_only=True)
class FinishedBlocks(CachePolicy):
    """Keeps the keys and values of finished blocks, which block-causal attention never changes again: exact.

    Source: BD3-LM (arXiv 2503.09573), section 3.3 and algorithm 2.
    """

    needs_kv_cache: ClassVar[bool] = True
    serves: ClassVar[tuple[str, ...]] = (BLOCK_CAUSAL,)

    def start(self, denoiser: Denoiser, rows: int, length: int) -> CacheRun:
        return FinishedBlocksRun(denoiser, rows, length)


def check_memory(needed: int, rows: int, length: int, device: torch.device) -> None:
    """Refuse a cache that a GPU has no room for, before any of it is taken.

    Args:
        needed: bytes, for keys and values of ``rows`` rows of ``length`` positions.

    Raises:
        OptionError: fewer bytes are free.
    """
    if device.type != "cuda":
        return
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if needed > free:
        raise OptionError(
            f"the cache of {rows} rows of {length} positions takes {needed / 1e9:.1f} GB, of which {free / 1e9:.1f} GB "
            "are free; give fewer prompts at once, lower max_new_tokens, or use cache='none'"
        )
