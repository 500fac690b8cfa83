"""The masked sampler with the options that decode fast, a drop-in for the core's.

Shapes: R rows, K block size, S steps of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from dllm_core.errors import OptionError
from dllm_core.samplers import MaskedOptions, MDLMSampler, SamplerState
from dllm_core.samplers.planning import steps_per_block
from dllm_core.samplers.quota import quota_counts
from dllm_core.samplers.state import Block, Open

FEWEST_MASKS = 32  # behind the block: with fewer, published runs lose accuracy


@dataclass(frozen=True, kw_only=True)
class FastOptions(MaskedOptions):
    """Options of `MDLMFastdLLMSampler`: those of the masked sampler, set for speed.

    Args:
        commit: writes several tokens a step where the model is sure.
        cache: computes the block only, and the whole canvas once a block. Families without a cache compute it always.
        suffix_window: ``block``: as many masks as the block has, but 32 at least. None: all of them.
        forced_commit: write each block's first token in the block's first step, whatever the model thinks of it, as
            the published code does where logits are shifted; it is there to compare with published runs. The first
            step then writes nothing else, and the schedule goes on with its second step.

    Raises:
        OptionError: as `MaskedOptions`, and a forced commit with drawn quotas.
    """

    commit: str = "fastdllm/threshold"
    cache: str = "fastdllm/dual"
    suffix_window: int | str | None = "block"
    forced_commit: bool = False

    def __post_init__(self) -> None:
        if self.suffix_window == "block":
            masks = None if self.block_size is None else max(FEWEST_MASKS, self.block_size)
            object.__setattr__(self, "suffix_window", masks)
        if isinstance(self.suffix_window, str):
            raise OptionError(f"suffix_window is a number, 'block' or None, got {self.suffix_window!r}")
        super().__post_init__()
        if self.forced_commit and self.stochastic_quota:
            raise OptionError("forced_commit plans its first step, stochastic_quota draws it; leave out one of them")


class MDLMFastdLLMSampler(MDLMSampler):
    """Masked diffusion that computes little and writes much: a block cache, a commit rule, a window on the masks.

    All options of `dllm.MDLMSampler` are there, and all of them combine with any rule and policy.

    Example:
        >>> denoiser = dllm.load(checkpoint)
        >>> print(dllm_fastdllm.MDLMFastdLLMSampler(denoiser, max_new_tokens=256).sample("12+30="))

    Source: Fast-dLLM (arXiv 2505.22618), algorithm 1; suffix window: Streaming-dLLM (arXiv 2601.17917).
    """

    options_class: ClassVar[type[MaskedOptions]] = FastOptions
    opening_only: ClassVar[tuple[str, ...]] = ("propose_at",)

    def open_block(self, state: SamplerState) -> Block | None:
        block = super().open_block(state)
        return block if block is None or not self.options.forced_commit else self._forced(state, block)

    def propose_at(self, state: SamplerState, ids: torch.Tensor) -> Open:
        block = state.block
        if not self.options.forced_commit or block.step > 0:
            return super().propose_at(state, ids)
        first = block.positions[:, :1]
        masked = (ids.gather(1, first) == self.denoiser.mask_token_id) & block.valid[:, :1]  # (R, 1)
        return Open(first, masked, masked)

    def _forced(self, state: SamplerState, block: Block) -> Block:
        """The block with a plan that begins with its first token. Rows that were given that token wait for a step."""
        canvas, counts, bounds = state.canvas, [], []
        for row in state.active:
            masks, start = canvas.masks(row, block.number), canvas.span(row, block.number)[0]
            forced = masks > 0 and canvas.rows[row][start] == canvas.mask_token_id
            counts.append((int(forced), *self._later_counts(state, row, masks - forced)))
            bounds.append(masks - forced)
        steps = max(map(len, counts))
        quota = torch.tensor([list(c) + [0] * (steps - len(c)) for c in counts], device=block.quota.device)
        later = range(max(bounds), 0, -1)
        if self.rule.follows_quota:
            later = [max(n - sum(c[1:step]) for n, c in zip(bounds, counts, strict=True)) for step in range(1, steps)]
        return replace(block, quota=quota, open_counts=[1, *later])

    def _later_counts(self, state: SamplerState, row: int, masks: int) -> tuple[int, ...]:
        options, steps = self.options, steps_per_block(self.options, state.canvas, row)
        if steps == 1 or options.quota == "even":
            return quota_counts(masks, max(1, steps - 1), options.quota, options.schedule)
        return quota_counts(masks, steps, options.quota, options.schedule, options.time_epsilon, 1)
