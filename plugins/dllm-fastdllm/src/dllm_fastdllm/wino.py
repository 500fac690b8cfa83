"""Wide in, narrow out: write boldly, look at it once more, and take back what does not hold.

Shapes: R rows, W canvas width, K block size, M open positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch

from dllm_core.config import within
from dllm_core.errors import OptionError
from dllm_core.models import Denoiser
from dllm_core.samplers import MaskedOptions, MDLMSampler, SamplerState, planning
from dllm_core.samplers.fit import Demands
from dllm_core.samplers.proposals import guided
from dllm_core.samplers.state import Block, spread
from dllm_core.samplers.view import in_the_models_form


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
    """

    ours: torch.Tensor
    accepted: torch.Tensor
    held: torch.Tensor


class WINOSampler(MDLMSampler):
    """Masked diffusion that masks a written token again when the rest of the canvas no longer supports it.

    Every pass computes a second copy of the block, all masks, whose position i looks at everything but position i of
    the block: what it says of the token there is not said by that token. A row takes tokens back only in a step that
    writes more than one, and fewer than the step before wrote, so every step brings it nearer to its end and a block
    takes at most as many steps as it has masks.

    Not defined with a cache (the paper computes the whole canvas at every step, and a copy judges by that; what a cache
    keeps is older, and none has a place for the copy), for families that take no attention pattern, where logits are
    right-shifted (a hidden position would need the one before it computed without it), with rules that follow the quota
    (which masks that come back would upset), nor with rules that need a history (which ends where a token is taken
    back).

    Raises:
        OptionError: any of these.

    Source: WINO, arXiv:2507.18578, section 3; Feng-Hong/WINO-DLLM LLaDA/decoding.py, decoding_wino.
    """

    options_class: ClassVar[type[MaskedOptions]] = WINOOptions
    demands: ClassVar[Demands] = Demands(capabilities=("supports_block_causal",), shifted_logits=False, history=False)

    def __init__(self, denoiser: Denoiser | None = None, **given: object) -> None:
        super().__init__(denoiser, **given)
        if self.options.cache != "none":
            raise OptionError(
                "wino's hidden copy of the block judges by the whole canvas as it stands, of which "
                f"cache={self.options.cache!r} keeps older keys and values; use cache='none'"
            )
        if self.rule.follows_quota:
            raise OptionError(
                f"wino takes tokens back, which upsets the plan of commit={self.options.commit!r}; use "
                "commit='fastdllm/draft' or another rule that sets its own pace"
            )

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
        columns, real = block.layout.shown(ids.shape[1])  # (R, W'), in front of the block's end columns are positions
        copies = columns.shape[1] + torch.arange(spots.shape[1], device=ids.device).expand_as(spots)
        at = torch.cat([positions.clamp(max=columns.shape[1] - 1), copies], 1)
        logits = self.denoiser.logits(
            torch.cat([ids.gather(1, columns), torch.full_like(spots, mask)], 1),  # (R, W' + K)
            at=at,
            position_ids=torch.cat([columns, spots], 1),
            attention=in_the_models_form(shadow_pattern(columns, real, spots, valid), self.denoiser),
        )
        state.stats.forward_passes += 1
        state.stats.positions_processed += columns.numel() + spots.numel()
        state.stats.logit_rows += at.numel()
        if state.hidden is not None:
            logits = guided(*logits.chunk(2), self.options.guidance_scale)
        ours, hidden = logits.split([positions.shape[1], spots.shape[1]], 1)
        hidden = hidden.float()
        block.held = (hidden.gather(2, written[..., None])[..., 0] - hidden.logsumexp(2)).exp()
        return ours

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


def shadow_pattern(columns: torch.Tensor, real: torch.Tensor, spots: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Who may look at whom on a canvas with a second copy of the block behind it.

    Args:
        columns: (R, W) int64, the position of each column of the canvas.
        real: (R, W) bool, False where a column is padding.
        spots: (R, K) int64, the positions that the copy stands for.
        valid: (R, K) bool, False behind the end of a row's block.

    Returns:
        (R, 1, W + K, W + K) bool: the canvas looks at the canvas; the copy at the copy and the canvas, except at the
        position that it stands for.
    """
    width, copies = columns.shape[1], spots.shape[1]
    seen = real[:, None]  # (R, 1, W)
    canvas = torch.cat([seen, torch.zeros_like(valid)[:, None]], 2).expand(-1, width, -1)
    others = seen & (columns[:, None] != spots[..., None])  # (R, K, W)
    copy = torch.cat([others, valid[:, None].expand(-1, copies, -1)], 2)
    return torch.cat([canvas, copy], 1)[:, None]
