"""How LLaDA 2.0 and 2.1 generate: block diffusion at the model's own pace, and in 2.1 with a chance to correct it.

Both are the core's block sampler: its loop, its cache of finished blocks, ragged batches, guidance and infilling.

Shapes: R rows, W canvas width, K block size, S steps of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch

from dllm_core.config import at_least, within
from dllm_core.samplers import BD3LMSampler, BlockOptions, MaskedOptions, SamplerState, planning
from dllm_core.samplers.canvas import Canvas
from dllm_core.samplers.planning import steps_per_block
from dllm_core.samplers.quota import even_quota
from dllm_core.samplers.state import Block, Open, spread


@dataclass(frozen=True, kw_only=True)
class LLaDA2Options(BlockOptions):
    """Options of `LLaDA2Sampler`; as everywhere, ``steps_per_block`` bounds the steps of a block.

    Args:
        commit: the published rule, whose own option is ``threshold``.
        whole_blocks: as in training, the last block is computed whole.
    """

    commit: str = "llada/threshold_or_quota"
    whole_blocks: bool = True


class LLaDA2Sampler(BD3LMSampler):
    """Block diffusion that commits everything sure enough in each step, and no less than the quota.

    The quota splits a whole block over its steps, so a block that begins with the prompt's tail takes fewer of them.

    Source: LLaDA 2.0, arXiv 2512.15745; ZHZisZZ/dllm pipelines/llada2/sampler.py, whose ``minimal_topk`` only lowers
    the number of steps.
    """

    options_class: ClassVar[type[MaskedOptions]] = LLaDA2Options

    def open_block(self, state: SamplerState) -> Block | None:
        block = super().open_block(state)
        if block is None:
            return None
        counts = [self._quota(state.canvas, row) for row in state.active]
        steps = max(map(len, counts))
        padded = [list(each) + [0] * (steps - len(each)) for each in counts]
        block.quota = torch.tensor(padded, device=block.positions.device)
        return block

    def _quota(self, canvas: Canvas, row: int) -> tuple[int, ...]:
        """The fewest commits of each step in a whole block of that row."""
        size = min(canvas.block_size, canvas.lengths[row] - canvas.origins[row])
        told = self.options.steps is not None or self.options.steps_per_block is not None
        return even_quota(size, steps_per_block(self.options, canvas, row) if told else size)


@dataclass(frozen=True, kw_only=True)
class LLaDA21Options(LLaDA2Options):
    """Options of `LLaDA21Sampler`.

    Args:
        editing_threshold: a written token is replaced by another that is surer than this, from 0 to 1.
        max_post_steps: passes, after the last mask of a block is gone, in which tokens may still be replaced.

    Raises:
        OptionError: a value out of range.
    """

    editing_threshold: float = 0.9
    max_post_steps: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        within("editing_threshold", self.editing_threshold, 0.0, 1.0)
        at_least("max_post_steps", self.max_post_steps, 0)


@dataclass(kw_only=True)
class EditedBlock(Block):
    """A block whose written tokens may be replaced.

    Args:
        ours: (R, K) bool, positions that were masks before the first step: only those are written or replaced.
        live: (R,) bool, rows that are not finished with the block.
        post_steps: (R,) int64, passes that a row has taken without a mask left.
    """

    ours: torch.Tensor
    live: torch.Tensor
    post_steps: torch.Tensor


class LLaDA21Sampler(LLaDA2Sampler):
    """`LLaDA2Sampler` that looks at what it has written once more and replaces what it now knows better.

    Every step proposes at all positions of the block. Where a token is written and another one is surer than
    ``editing_threshold``, that one takes its place. When no mask is left a row takes up to ``max_post_steps`` more
    passes and stops at the first that changes nothing. Each row goes at its own pace.

    Source: LLaDA 2.1, arXiv 2602.08676 (token-to-token editing); ZHZisZZ/dllm pipelines/llada21/sampler.py, whose
    ``num_to_transfer`` is the quota, ``block_size / steps_per_block`` here.
    """

    options_class: ClassVar[type[MaskedOptions]] = LLaDA21Options

    def open_block(self, state: SamplerState) -> Block | None:
        block = super().open_block(state)
        if block is None:
            return None
        start = state.canvas.tensor(self.denoiser.pad_token_id, block.positions.device)[block.rows]
        ours = (start.gather(1, block.positions) == self.denoiser.mask_token_id) & block.valid
        plan = {field.name: getattr(block, field.name) for field in fields(Block)}
        plan["open_counts"] = block.open_counts + [0] * self.options.max_post_steps
        live = ours.any(1)
        return EditedBlock(**plan, ours=ours, live=live, post_steps=torch.zeros_like(live, dtype=torch.int64))

    def propose_at(self, state: SamplerState, ids: torch.Tensor) -> Open:
        block = state.block
        ours = block.ours & block.live[:, None]
        return Open(block.positions, ours & (ids.gather(1, block.positions) == self.denoiser.mask_token_id), ours)

    def revise(self, state: SamplerState, ids: torch.Tensor) -> torch.Tensor:
        block, proposal, mask = state.block, state.block.proposal, self.denoiser.mask_token_id
        before = planning.current_ids(state).gather(1, block.positions)  # (R, K)
        sure = proposal.confidence > self.options.editing_threshold
        ours = block.ours & block.live[:, None]
        edit = ours & (before != mask) & (proposal.tokens != before) & sure
        self._note_progress(block, before, ids, edit)
        edited = spread(edit.long(), block.positions, edit, ids.shape[1]).bool()
        return torch.where(edited, spread(proposal.tokens, block.positions, edit, ids.shape[1]), ids)

    def is_complete(self, state: SamplerState, ids: torch.Tensor) -> bool:
        return state.block.step == len(state.block.open_counts) or not state.told(state.block.live.any())

    def _note_progress(self, block: EditedBlock, before: torch.Tensor, ids: torch.Tensor, edit: torch.Tensor) -> None:
        """Count a row's passes without masks, and end rows that have had enough of them or changed nothing."""
        mask = self.denoiser.mask_token_id
        was_post = ~((before == mask) & block.ours).any(1)  # (R,)
        left = ((ids.gather(1, block.positions) == mask) & block.ours).any(1)
        block.post_steps = block.post_steps + (was_post & block.live)
        enough = (block.post_steps >= self.options.max_post_steps) | (was_post & ~edit.any(1))
        block.live = block.live & (left | ~enough)
