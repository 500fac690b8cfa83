"""Wide in, narrow out: write boldly, look at it once more, and take back what does not hold.

Shapes: R rows, W canvas width, K block size, M open positions, Q positions of the canvas that a forward computes, S
positions that it reads, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch.nn.attention.flex_attention import BlockMask

from dllm_core.config import within
from dllm_core.errors import OptionError
from dllm_core.models import Denoiser
from dllm_core.samplers import MaskedOptions, MDLMSampler, SamplerState, planning
from dllm_core.samplers.cache import KeptRun, NoCache, Plan
from dllm_core.samplers.canvas import Canvas
from dllm_core.samplers.fit import Demands
from dllm_core.samplers.proposals import guided
from dllm_core.samplers.state import Block, spread
from dllm_core.samplers.view import Answer, View, in_the_models_form
from dllm_fastdllm.caches.window import WindowPolicy


@dataclass(frozen=True, kw_only=True)
class WINOOptions(MaskedOptions):
    """Options of `WINOSampler`.

    Args:
        commit: what is written before it is looked at once more.
        verify_threshold: a written token less probable than this, when it is hidden, is masked again; from 0 (none is)
            to 1 (threshold_back).

    Raises:
        OptionError: a value out of range.
    """

    commit: str = "fastdllm/draft"
    verify_threshold: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        within("verify_threshold", self.verify_threshold, 0.0, 1.0)


@dataclass(kw_only=True)
class VerifiedBlock(Block):
    """A block whose written tokens may be taken back.

    Args:
        ours: (R, K) bool, positions that were masks before the first step.
        accepted: (R,) int64, tokens written in the step before; 1 in front of the first.
        held: (R, K) float32, the probability of each position's token where that token is hidden.
        plans: what the cache planned last, and the same with the copy; None before the first.
    """

    ours: torch.Tensor
    accepted: torch.Tensor
    held: torch.Tensor
    plans: tuple[Plan, Plan] | None = None


class WINOSampler(MDLMSampler):
    """Masked diffusion that masks a written token again when the rest of the canvas no longer supports it.

    Every pass computes a second copy of the block, all masks, whose position i looks at everything but position i of
    the block: what it says of the token there is not said by that token. A row takes tokens back only in a step that
    writes more than one, and fewer than the step before wrote, so every step brings it nearer to its end and a block
    takes at most as many steps as it has masks.

    With a cache the copy is computed beside what the cache computes and looks at what it keeps, as the block itself
    does; with a refresh at every step that is no cache.

    Not defined for families that take no attention pattern, where logits are right-shifted (a token's scores are those
    of the position before it, which would have to be computed once more for every token of the block, and no such copy
    is published), with rules that follow the quota (which masks that come back would upset), nor with rules that need a
    history (which ends where a token is taken back).

    Raises:
        OptionError: any of these.

    Source: WINO, arXiv:2507.18578, section 3; Feng-Hong/WINO-DLLM LLaDA/decoding.py, decoding_wino.
    """

    options_class: ClassVar[type[MaskedOptions]] = WINOOptions
    demands: ClassVar[Demands] = Demands(capabilities=("supports_block_causal",), shifted_logits=False, history=False)

    def __init__(self, denoiser: Denoiser | None = None, **given: object) -> None:
        super().__init__(denoiser, **given)
        if not isinstance(self.cache, NoCache | WindowPolicy):
            raise OptionError(
                f"cache={self.options.cache!r} has no place for wino's hidden copy of the block; use "
                "cache='fastdllm/dual' or another one of fastdllm, or cache='none'"
            )
        if self.rule.follows_quota:
            raise OptionError(
                f"wino takes tokens back, which upsets the plan of commit={self.options.commit!r}; use "
                "commit='fastdllm/draft' or another rule that sets its own pace"
            )

    def positions_beside(self, canvas: Canvas) -> int:
        return canvas.block_size

    def open_block(self, state: SamplerState) -> Block | None:
        block = super().open_block(state)
        if block is None:
            return None
        plan = {field.name: getattr(block, field.name) for field in fields(Block)}
        ids = state.input_ids[block.rows].gather(1, block.positions)  # (R, K)
        ours = (ids == self.denoiser.mask_token_id) & block.valid
        return VerifiedBlock(
            **plan,
            ours=ours,
            accepted=torch.ones_like(block.rows),
            held=torch.ones(ours.shape, device=ours.device),
        )

    def logits_at(self, state: SamplerState, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        block, mask = state.block, self.denoiser.mask_token_id
        spots, valid = block.positions, block.valid
        written = ids.gather(1, spots)
        if state.hidden is not None:
            ids = torch.cat([ids, ids.masked_fill(state.hidden[block.rows, : ids.shape[1]], mask)])  # (2R, W)
            positions, spots, valid = (each.repeat(2, 1) for each in (positions, spots, valid))
        view = View(block.layout, block.step, ids, positions)
        kept = isinstance(state.cache, KeptRun)
        answer = self._kept(state, view, spots, valid) if kept else self._computed_anew(view, spots, valid)
        state.stats.forward_passes += 1
        state.stats.positions_processed += answer.positions
        state.stats.logit_rows += answer.logit_rows
        logits = answer.logits  # (R, M + K, V)
        if state.hidden is not None:
            logits = guided(*logits.chunk(2), self.options.guidance_scale)
        ours, hidden = logits.split([positions.shape[1], spots.shape[1]], 1)
        hidden = hidden.float()
        block.held = (hidden.gather(2, written[..., None])[..., 0] - hidden.logsumexp(2)).exp()
        return ours

    def _computed_anew(self, view: View, spots: torch.Tensor, valid: torch.Tensor) -> Answer:
        """The whole canvas with the copy (R, K) behind it."""
        columns, real = view.layout.shown(view.input_ids.shape[1])  # (R, W)
        width = columns.shape[1]
        copies = width + torch.arange(spots.shape[1], device=spots.device).expand_as(spots)
        at = torch.cat([view.at.clamp(max=width - 1), copies], 1)
        tokens = torch.cat([view.input_ids.gather(1, columns), torch.full_like(spots, self.denoiser.mask_token_id)], 1)
        logits = self.denoiser.logits(
            tokens,
            at=at,
            position_ids=torch.cat([columns, spots], 1),
            attention=in_the_models_form(shadow_pattern(columns, real, spots, valid, width), self.denoiser),
        )
        return Answer(logits, tokens.numel(), at.numel())

    def _kept(self, state: SamplerState, view: View, spots: torch.Tensor, valid: torch.Tensor) -> Answer:
        """What the cache computes at this step, with the copy (R, K) behind it."""
        run, block = state.cache, state.block
        plan = run.plan = run.plan_of(view)
        if block.plans is None or block.plans[0] is not plan:
            columns = torch.arange(plan.reads, device=spots.device)
            real = view.layout.there(columns)
            pattern = shadow_pattern(columns.expand_as(real), real, spots, valid, plan.positions.shape[1])
            block.plans = plan, with_copy(plan, spots, in_the_models_form(pattern, self.denoiser))
        return run.by_plan(view, block.plans[1])

    def revise(self, state: SamplerState, ids: torch.Tensor) -> torch.Tensor:
        block, mask = state.block, self.denoiser.mask_token_id
        before = planning.current_ids(state).gather(1, block.positions)  # (R, K)
        accepted = (block.ours & (before == mask) & (ids.gather(1, block.positions) != mask)).sum(1)
        doubted = block.ours & (before != mask) & (block.held < self.options.verify_threshold)
        doubted = doubted & (accepted > 1)[:, None]
        order = block.held.masked_fill(~doubted, torch.inf).argsort(dim=1, stable=True)
        worst = torch.arange(order.shape[1], device=order.device) < block.accepted[:, None] - 1
        back = doubted & torch.zeros_like(doubted).scatter(1, order, worst)
        block.accepted = accepted
        return ids.masked_fill(spread(back.long(), block.positions, back, ids.shape[1]).bool(), mask)


def with_copy(plan: Plan, spots: torch.Tensor, pattern: torch.Tensor | BlockMask) -> Plan:
    """The plan with a copy of the block (R, K) behind its positions, in the slots behind those that it reads."""
    slots = plan.reads + torch.arange(spots.shape[1], device=spots.device).expand_as(spots)
    return plan._replace(
        positions=torch.cat([plan.positions, spots], 1),
        slots=torch.cat([plan.slots, slots], 1),
        pattern=pattern,
        reads=plan.reads + spots.shape[1],
        copies=spots.shape[1],
    )


def shadow_pattern(
    columns: torch.Tensor, real: torch.Tensor, spots: torch.Tensor, valid: torch.Tensor, queries: int
) -> torch.Tensor:
    """Who may look at whom on a canvas with a second copy of the block behind it.

    Args:
        columns: (R, S) int64, the position of each column of the canvas that is read.
        real: (R, S) bool, False where a column is padding.
        spots: (R, K) int64, the positions that the copy stands for.
        valid: (R, K) bool, False behind the end of a row's block.
        queries: Q, how many positions of the canvas look.

    Returns:
        (R, 1, Q + K, S + K) bool: the canvas looks at the canvas; the copy at the copy and the canvas, except at the
        position that it stands for.
    """
    copies = spots.shape[1]
    seen = real[:, None]  # (R, 1, S)
    canvas = torch.cat([seen, torch.zeros_like(valid)[:, None]], 2).expand(-1, queries, -1)
    others = seen & (columns[:, None] != spots[..., None])  # (R, K, S)
    copy = torch.cat([others, valid[:, None].expand(-1, copies, -1)], 2)
    return torch.cat([canvas, copy], 1)[:, None]
