"""Lookahead parallel decoding: try several ways on at once, and follow the one that leaves the model surest.

Shapes: R rows, W canvas width, M open positions, N canvases a row (one anchor and N - 1 branches).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch

from dllm_core.config import at_least, within
from dllm_core.errors import OptionError
from dllm_core.models import Denoiser
from dllm_core.samplers import Layout, MaskedOptions, MDLMSampler, Proposal, SamplerState
from dllm_core.samplers.fit import Demands
from dllm_core.samplers.state import Block, Considered, Open


@dataclass(frozen=True, kw_only=True)
class LoPAOptions(MaskedOptions):
    """Options of `LoPASampler`.

    Args:
        commit: what every step writes before it branches; a rule that sets its own pace.
        branches: how many ways on are tried beside the one that writes nothing more; 0: none, the plain masked sampler.
        creation_weight: from 0 to 1, how much the confidence of a branch's own token counts against that of what is
            still to come (alpha).
        weakest_share: above 0 to 1, the part of the open positions, the least sure ones, that what is to come is
            measured by.

    Raises:
        OptionError: a value out of range.
    """

    commit: str = "fastdllm/threshold"
    branches: int = 4
    creation_weight: float = 0.5
    weakest_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("branches", self.branches, 0)
        within("creation_weight", self.creation_weight, 0.0, 1.0)
        within("weakest_share", self.weakest_share, 0.0, 1.0)
        if self.weakest_share == 0:
            raise OptionError("weakest_share must be above 0, got 0; 0.5 is the published choice")


@dataclass(frozen=True)
class Ways:
    """What each canvas of a row writes beside what the last step wrote; the first, the anchor, writes nothing.

    Args:
        positions: (R, N) int64; anything where there is none.
        tokens: (R, N) int64.
        confidence: (R, N) float32, of that token; 1 for the anchor.
        there: (R, N) bool, whether there is such a way: a row may have fewer masks left than branches.
    """

    positions: torch.Tensor
    tokens: torch.Tensor
    confidence: torch.Tensor
    there: torch.Tensor

    def canvases(self, ids: torch.Tensor) -> torch.Tensor:
        """The canvases of all rows (R, W), the anchor of each in front of its branches. -> (R N, W)"""
        rows, count = self.positions.shape
        canvases = ids[:, None].expand(-1, count, -1).reshape(rows * count, -1)
        at, tokens = self.positions.reshape(-1, 1), self.tokens.reshape(-1, 1)
        writes = self.there.clone()
        writes[:, 0] = False
        return canvases.scatter(1, at, tokens.where(writes.reshape(-1, 1), canvases.gather(1, at)))


@dataclass(kw_only=True)
class BranchingBlock(Block):
    """A block of which each step computes several canvases a row.

    Args:
        open: where the last step proposed; None before the first.
        ways: what the next step tries.
        fork: the layout of all canvases, one object for all steps.
    """

    open: Open | None = None
    ways: Ways | None = None
    fork: Layout | None = None


class LoPASampler(MDLMSampler):
    """Masked diffusion that looks ahead: after its commit rule it tries the next surest positions, one on each branch.

    All canvases of a row are computed at once, as further rows. The branch that scores best is followed, and what was
    computed for it serves the next step, so looking ahead takes no further pass. A canvas scores ``creation_weight``
    times the confidence of its own token (1 for the anchor, which has none) plus the rest times the mean confidence of
    its least sure open positions; of equals the anchor wins, then the surer token.

    The first step of a block computes one canvas a row. With a cache every branch holds keys and values of its own, so
    memory grows with ``branches``: this is for one row or a few at once. Of those that are followed a step copies what
    it wrote, with the cache ``dual`` the block, and the first look ahead in a block what its first step wrote.

    Not defined with rules that follow the quota (a branch writes more than planned), nor with rules that need a history
    (a branch has none of its own).

    Raises:
        OptionError: such a rule.

    Source: LoPA, arXiv:2512.16229; zhijie-group/LoPA lopa_dist_nv/generate_branch_parallel.py,
    evaluate_branch_confidence.
    """

    options_class: ClassVar[type[MaskedOptions]] = LoPAOptions
    demands: ClassVar[Demands] = Demands(history=False)

    def __init__(self, denoiser: Denoiser | None = None, **given: object) -> None:
        super().__init__(denoiser, **given)
        if self.rule.follows_quota:
            raise OptionError(
                f"lopa writes more than commit={self.options.commit!r} plans; use commit='threshold' or another rule "
                "that sets its own pace"
            )

    @property
    def canvases_per_row(self) -> int:
        return 1 + self.options.branches

    def open_block(self, state: SamplerState) -> Block | None:
        block = super().open_block(state)
        if block is None:
            return None
        return BranchingBlock(**{field.name: getattr(block, field.name) for field in fields(Block)})

    def consider(self, state: SamplerState, ids: torch.Tensor) -> Considered:
        block = state.block
        seen = super().consider(state, ids) if block.ways is None else self._look_ahead(state, ids)
        block.open = seen.open
        return seen

    def revise(self, state: SamplerState, ids: torch.Tensor) -> torch.Tensor:
        block, proposal = state.block, state.block.proposal
        slots, masked, _ = block.open
        left = masked & (ids.gather(1, slots) == self.denoiser.mask_token_id)
        block.ways = next_ways(proposal, slots, left, self.options.branches)
        return ids

    def _look_ahead(self, state: SamplerState, ids: torch.Tensor) -> Considered:
        """Compute all canvases, and follow one of each row."""
        block, ways, count = state.block, state.block.ways, self.canvases_per_row
        rows = torch.arange(len(ids))
        canvases = ways.canvases(ids)  # (R N, W)
        slots, masked, shown = (each.repeat_interleave(count, 0) for each in self.propose_at(state, ids))
        masked = masked & (canvases.gather(1, slots) == self.denoiser.mask_token_id)

        every = self._with_guided(state, rows.repeat_interleave(count), len(rows))
        block.fork = take(block.layout, every) if block.fork is None else block.fork
        spread = {"rows": block.rows.repeat_interleave(count), "positions": block.positions.repeat_interleave(count, 0)}
        forked = replace(state, block=replace(block, layout=block.fork, **spread))
        state.cache.fork(every)
        logits = self.logits_at(forked, canvases, slots)  # (R N, M, V)
        proposal = self.proposal_from(forked, logits, Open(slots, masked, shown))

        hope = outlook(proposal.confidence, masked, self.options.weakest_share).reshape(-1, count)  # (R, N)
        best = follow(ways, hope, self.options.creation_weight)  # (R,)
        chosen = torch.arange(len(rows), device=best.device) * count + best
        state.cache.follow(self._with_guided(state, torch.tensor(state.told(chosen)), len(rows) * count))
        at, proposal = Open(slots[chosen], masked[chosen], shown[chosen]), pick(proposal, chosen)
        own = ways.confidence.gather(1, best[:, None])  # (R, 1), of the token that the branch wrote
        proposal = replace(proposal, confidence=torch.where(at.shown & ~at.masked, own, proposal.confidence))
        return Considered(canvases[chosen], at, proposal)

    def _with_guided(self, state: SamplerState, rows: torch.Tensor, count: int) -> torch.Tensor:
        """The same rows of the unconditional half too, which stands ``count`` rows behind, where there is one."""
        return rows if state.hidden is None else torch.cat([rows, rows + count])


def next_ways(proposal: Proposal, slots: torch.Tensor, left: torch.Tensor, branches: int) -> Ways:
    """The anchor, and a branch for each of the surest positions that are left.

    Args:
        slots: (R, M) int64, the positions of the proposal.
        left: (R, M) bool, which of them are still masks.
    """
    rows, open_count = left.shape
    pad = max(0, branches - open_count)
    ranked = proposal.confidence.masked_fill(~left, -torch.inf)
    order = ranked.argsort(dim=1, descending=True, stable=True)
    # Suppressed ones tie with what is no mask, so that order alone does not tell them apart.
    order = order.gather(1, (~left.gather(1, order)).to(torch.uint8).argsort(dim=1, stable=True))[:, :branches]
    order = torch.nn.functional.pad(order, (0, pad))
    rank = torch.arange(branches, device=left.device)
    there = rank < left.sum(1, keepdim=True)

    def with_anchor(values: torch.Tensor, anchor: float) -> torch.Tensor:
        return torch.cat([values.new_full((rows, 1), anchor), values], 1)

    return Ways(
        positions=with_anchor(slots.gather(1, order), 0),
        tokens=with_anchor(proposal.tokens.gather(1, order), 0),
        confidence=with_anchor(proposal.confidence.gather(1, order), 1),
        there=with_anchor(there, True),
    )


def outlook(confidence: torch.Tensor, masked: torch.Tensor, share: float) -> torch.Tensor:
    """The mean confidence of the least sure part of the masks, at least of one; 1 where none is left. (B, M) -> (B,)"""
    weakest = confidence.masked_fill(~masked, torch.inf).sort(dim=1).values
    open_count = masked.sum(1, keepdim=True)
    count = (open_count * share).long().clamp(min=1)  # (B, 1)
    rank = torch.arange(weakest.shape[1], device=weakest.device)
    mean = weakest.masked_fill(rank >= count, 0).sum(1, keepdim=True) / count
    return mean.where(open_count > 0, 1.0)[:, 0]


def follow(ways: Ways, hope: torch.Tensor, creation_weight: float) -> torch.Tensor:
    """The canvas of each row that scores best, the first of equals. ``hope`` (R, N) -> (R,)"""
    score = creation_weight * ways.confidence + (1 - creation_weight) * hope
    score = score.masked_fill(~ways.there | score.isnan(), -torch.inf)  # nan: 0 times the -inf of a suppressed token
    return score.argsort(dim=1, descending=True, stable=True)[:, 0]


def pick(proposal: Proposal, rows: torch.Tensor) -> Proposal:
    """Some rows of a proposal."""
    values = {field.name: getattr(proposal, field.name) for field in fields(Proposal)}
    return Proposal(**{name: value if value is None else value[rows] for name, value in values.items()})


def take(layout: Layout, rows: torch.Tensor) -> Layout:
    """Some rows of a layout, perhaps several times. (R',) int64 on the CPU"""
    changed = {}
    for field in fields(Layout):
        value = getattr(layout, field.name)
        if isinstance(value, tuple):
            changed[field.name] = tuple(value[row] for row in rows.tolist())
        elif isinstance(value, torch.Tensor):
            changed[field.name] = value[rows]
    return replace(layout, **changed)
