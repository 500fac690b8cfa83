"""Cache policies: which positions of the canvas each step computes anew, and what is kept between steps.

Shapes: R rows, W canvas width, M open positions, Q positions of one forward, S slots that are read, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask

from dllm_core.errors import OptionError
from dllm_core.models.cache import BlockCache
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers.view import BLOCK_CAUSAL, FULL, Answer, View, in_the_models_form

if TYPE_CHECKING:
    from dllm_core.samplers.compiled import CompiledSteps

MEMINFO = Path("/proc/meminfo")  # where Linux tells how much memory is left


class CacheRun:
    """What a policy keeps during one run; the loop asks it for the logits of every step.

    Args:
        denoiser: the model.
        rows: how many rows the run begins with; guided runs hold every row twice.
        length: of the longest row, with what a step computes beside it (`Sampler.positions_beside`).
    """

    cache_bytes: int = 0  # the most memory that it will hold

    def __init__(self, denoiser: Denoiser, rows: int, length: int) -> None:
        self.denoiser, self.rows, self.length = denoiser, rows, length

    def claim(self) -> None:
        """Refuse, before the first step, what there is no room for."""

    def logits(self, view: View) -> Answer:
        """Logits at the open positions of a step, and what they cost."""
        raise NotImplementedError

    def keep(self, rows: torch.Tensor) -> None:
        """Some rows are finished: forget all but these. (R',) int64 on the CPU, numbers among the present rows"""

    def fork(self, rows: torch.Tensor) -> None:
        """The next step computes several canvases a row: each present row as often, side by side. (R N,) on the CPU"""
        self.keep(rows)

    def follow(self, rows: torch.Tensor) -> None:
        """The run goes on with one canvas a row, of those that the step behind a `fork` computed. (R,) on the CPU"""
        self.keep(rows)

    def end(self) -> None:
        """The run has taken its last step."""


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """A policy is a frozen dataclass; its fields are the options that it adds to the sampler's.

    Nothing that belongs to a run is kept on the policy: `start` makes a `CacheRun` for it.

    Attributes:
        needs_kv_cache: only families that declare ``supports_kv_cache`` can use it.
        serves: the kinds of attention that it is right for, ``"full"`` and ``"block_causal"``.
        steps_are_planned: its runs are of the class `KeptRun` and ask in no other way than by a plan, so steps inside a
            block can be compiled (``compiled_step``).
        computes_anew: every step's scores come from a forward of that step. A policy that hands out scores of an
            earlier step again has no history to offer, so rules that compare steps refuse it.
    """

    needs_kv_cache: ClassVar[bool] = False
    steps_are_planned: ClassVar[bool] = False
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


class Plan(NamedTuple):
    """What one forward over a kept canvas computes; the same object as long as steps compute the same.

    Args:
        begin, start, stop: (R, 1) int64, first position computed, first of the block, and the one after the block.
        positions: (R, Q) int64, window by window; shorter rows repeat their last one.
        slots: (R, Q) int64, where their keys and values go.
        pattern: who looks at whom among the slots that are read, in the form that the model takes; None: all at all.
        reads: S, how many slots are read.
        carries: whether a row computes the position in front of its block.
        borrows: with right-shifted logits, take a block's first scores from the position behind it.
        spares: rows that have no mask left in the block keep the keys and values that they have.
        guided: the second half of the rows is the unconditional one.
        copies: the last so many positions stand for a second copy of the block: they are computed as masks, whatever
            the canvas holds there, and all of them are projected, behind the open positions.
    """

    begin: torch.Tensor
    start: torch.Tensor
    stop: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    pattern: torch.Tensor | BlockMask | None
    reads: int
    carries: bool
    borrows: bool = False
    spares: bool = False
    guided: bool = False
    copies: int = 0


def ask(
    denoiser: Denoiser, cache: BlockCache, plan: Plan, ids: torch.Tensor, at: torch.Tensor, lead: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, int]:
    """One forward by a plan. It asks the device nothing, and its shapes follow from those of its arguments.

    Args:
        ids: (R, W) int64, the canvas.
        at: (R, M) int64, the open positions.
        lead: (R, V) scores of each block's first token, for right-shifted families; None: not computed yet.

    Returns:
        Logits (R, M, V), or (R, M + K, V) by a plan with copies; the lead from now on, and how many positions were
        projected.
    """
    shifted, mask = denoiser.logits_are_shifted, denoiser.mask_token_id
    carries = shifted and (plan.carries or lead is None)
    if carries:  # the position before the block is computed now, and perhaps in none of the next steps
        at = torch.cat([plan.start, at], 1)
    elif shifted and plan.borrows:
        at = torch.where(at == plan.start, at + 1, at)
    at = (at - plan.begin).clamp(0, plan.positions.shape[1] - 1)  # only filler lies outside
    tokens = ids.gather(1, plan.positions)
    if plan.copies:
        columns = torch.arange(plan.positions.shape[1], device=ids.device)
        tokens = tokens.masked_fill(columns >= len(columns) - plan.copies, mask)
        at = torch.cat([at, columns[-plan.copies :].expand(len(at), -1)], 1)
    cache.place(_slots(plan, ids, mask, cache.nowhere), plan.reads)
    logits = denoiser.logits(
        tokens,
        at=at,
        position_ids=plan.positions,
        attention=plan.pattern,
        cache=cache,
        lead=lead,
    )
    return (logits[:, 1:], logits[:, 0], at.numel()) if carries else (logits, lead, at.numel())


def _slots(plan: Plan, ids: torch.Tensor, mask_token_id: int, nowhere: int) -> torch.Tensor:
    """Rows that have no mask left in the block keep what they have: alone, they would have gone on. -> (R, Q)"""
    if not plan.spares:
        return plan.slots
    columns = torch.arange(ids.shape[1], device=ids.device)
    inside = (columns >= plan.start) & (columns < plan.stop)  # (R, W)
    open_ = ((ids == mask_token_id) & inside).any(1, keepdim=True)  # (R, 1)
    if plan.guided:  # of the half that is shown the prompt; the other may see masks in place of given tokens
        open_ = open_.chunk(2)[0].repeat(2, 1)
    return torch.where(open_, plan.slots, nowhere)


class KeptRun(CacheRun):
    """Keys and values of the whole canvas in one buffer, of which every forward overwrites what it computes.

    A subclass says in `plan_of` what a step computes. It follows from the canvas and the number of the step, never from
    what the model answered, so that it is known on the host. What else it keeps of each row it hands on in `renumber`.
    """

    def __init__(self, denoiser: Denoiser, rows: int, length: int) -> None:
        super().__init__(denoiser, rows, length)
        self.cache_bytes = BlockCache.bytes_needed(denoiser.bare_model.config, rows, length, denoiser.dtype)
        self.cache = BlockCache(rows, length)
        self.lender: CompiledSteps | None = None
        self.plan: Plan | None = None
        self.wide: tuple[Plan, Plan] | None = None  # the last plan that a compiled step took, and as it took it
        self.lead: torch.Tensor | None = None  # (R, V) scores of each block's first token, for right-shifted families

    def claim(self) -> None:
        check_memory(self.cache_bytes, self.rows, self.length, self.denoiser.device)

    def borrow(self, lender: CompiledSteps) -> None:
        """Run over a cache that comes with steps built over it; before the first step."""
        self.lender, self.cache = lender, lender.take(self.rows, self.length)
        config = self.denoiser.bare_model.config
        self.cache_bytes = BlockCache.bytes_needed(config, self.cache.rows, self.cache.length, self.denoiser.dtype)

    def plan_of(self, view: View) -> Plan:
        """What that step computes; asked once a step, in order."""
        raise NotImplementedError

    def logits(self, view: View) -> Answer:
        self.plan = self.plan_of(view)
        return self.by_plan(view, self.plan)

    def by_plan(self, view: View, plan: Plan) -> Answer:
        """One forward by the plan of that step, to which a sampler may have added copies."""
        logits, self.lead, projected = ask(self.denoiser, self.cache, plan, view.input_ids, view.at, self.lead)
        return Answer(logits, plan.positions.numel(), projected)

    def keep(self, rows: torch.Tensor) -> None:
        if self.lender is None:
            self.cache.select(rows)
        else:
            self.cache.move_up(rows)  # graphs read these buffers by address
        self.renumber(rows)

    def fork(self, rows: torch.Tensor) -> None:
        self.cache.fork(int((rows == rows[0]).sum()))
        self.renumber(rows)

    def follow(self, rows: torch.Tensor) -> None:
        self.cache.follow(rows)
        self.renumber(rows)

    def renumber(self, rows: torch.Tensor) -> None:
        """What is kept of each row beside keys and values, for these rows, perhaps several times. (R',) on the CPU"""
        self.lead = None if self.lead is None else self.lead[rows]

    def end(self) -> None:
        if self.lender is not None:
            self.lender.give_back(self.cache)


class FinishedBlocksRun(KeptRun):
    """Keys and values of everything in front of the block stay; those of the block are overwritten at every step.

    The first step of a block computes the block before it once more, whose last tokens were still masks when it was
    last computed, and the prompt before the first block: no pass of its own is spent on either.
    """

    def __init__(self, denoiser: Denoiser, rows: int, length: int) -> None:
        super().__init__(denoiser, rows, length)
        self.final = [0] * rows  # tokens of each row whose keys and values will not change any more

    def plan_of(self, view: View) -> Plan:
        if view.step >= 2:  # later steps compute what the second one does
            return self.plan
        begins = self.final if view.step == 0 else view.layout.starts
        self.final = list(view.layout.starts)
        return self._plan_from(view, begins)

    def renumber(self, rows: torch.Tensor) -> None:
        super().renumber(rows)
        self.final = [self.final[row] for row in rows.tolist()]

    def _plan_from(self, view: View, begins: Sequence[int]) -> Plan:
        """Of each row the positions from ``begins`` to the end of its block."""
        layout, reads = view.layout, max(view.layout.stops)
        spans = torch.tensor([begins, layout.starts, layout.stops], device=layout.ends.device)[..., None]  # (3, R, 1)
        begin, start, stop = spans
        width = max(stop - begin for begin, stop in zip(begins, layout.stops, strict=True))
        columns = begin + torch.arange(width, device=begin.device)
        positions = columns.minimum(stop - 1)
        slots = columns.where(columns < stop, self.cache.nowhere)
        pattern = in_the_models_form(layout.pattern(positions, reads), self.denoiser)
        # The position before the block is computed in its first step, and in none of the later ones.
        return Plan(begin, start, stop, positions, slots, pattern, reads, carries=view.step == 0)


@dataclass(frozen=True, kw_only=True)
class FinishedBlocks(CachePolicy):
    """Keeps the keys and values of finished blocks, which block-causal attention never changes again: exact.

    Source: BD3-LM (arXiv 2503.09573), section 3.3 and algorithm 2.
    """

    needs_kv_cache: ClassVar[bool] = True
    steps_are_planned: ClassVar[bool] = True
    serves: ClassVar[tuple[str, ...]] = (BLOCK_CAUSAL,)

    def start(self, denoiser: Denoiser, rows: int, length: int) -> CacheRun:
        return FinishedBlocksRun(denoiser, rows, length)


def check_memory(needed: int, rows: int, length: int, device: torch.device) -> None:
    """Refuse a cache that there is no room for, before any of it is taken.

    Args:
        needed: bytes, for keys and values of ``rows`` rows of ``length`` positions.

    Raises:
        OptionError: fewer bytes are free.
    """
    free = free_bytes(device)
    if free is not None and needed > free:
        raise OptionError(
            f"the cache of {rows} rows of {length} positions takes {needed / 1e9:.1f} GB, of which {free / 1e9:.1f} GB "
            f"are free on {device}; give fewer prompts at once, lower max_new_tokens, or use cache='none'"
        )


def free_bytes(device: torch.device) -> int | None:
    """The memory that a run can still take: of a GPU, or of this machine where the kernel says so; else None."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    # Without this a CPU run is ended by the kernel, without a word, once it touches what it was given.
    if device.type != "cpu" or not MEMINFO.exists():
        return None
    lines = MEMINFO.read_text(encoding="ascii").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
