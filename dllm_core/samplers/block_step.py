"""One step inside a block as one pure function of static shapes: forward, proposal, commit, "is it done".

Nothing in it asks the device for a value or depends on one, so it compiles without a graph break and a CUDA graph can
capture it. It is the sampler's own step but for two things: it proposes at all positions of the block, not only at
those that are still masks, and its plan is made beforehand. Opening a block is not part of it.

Shapes: R rows (guided runs compute 2 R), W canvas width, K block size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from dllm_core.models.cache import BlockCache
from dllm_core.models.denoiser import Denoiser
from dllm_core.noise.counter import uniform
from dllm_core.samplers.cache import Plan, ask
from dllm_core.samplers.commit import CommitRule
from dllm_core.samplers.options import MaskedOptions
from dllm_core.samplers.planning import confidence_map
from dllm_core.samplers.proposals import guided
from dllm_core.samplers.state import Open, open_positions, spread
from dllm_core.samplers.weighing import draws, weighed


class Moment(NamedTuple):
    """What a step depends on.

    Args:
        ids: (R, W) int64, the canvas.
        plan: what is computed, 2 R rows in guided runs.
        lead: (R, V) scores of each block's first token, for right-shifted families.
        positions: (R, K) int64, the block.
        valid: (R, K) bool, False behind the end of a row's block.
        quota: (R,) int64, commits of this step.
        keys: (R,) int64, noise keys.
        number, step: () int64, of the block, and of the step in it.
        hidden: (R, W) bool, given tokens that the unconditional canvas masks; None: no guidance.
    """

    ids: torch.Tensor
    plan: Plan
    lead: torch.Tensor | None
    positions: torch.Tensor
    valid: torch.Tensor
    quota: torch.Tensor
    keys: torch.Tensor
    number: torch.Tensor
    step: torch.Tensor
    hidden: torch.Tensor | None


class Stepped(NamedTuple):
    """What a step leaves.

    Args:
        ids: (R, W) int64, the canvas.
        confidence: (R, W) float32, at the positions that were masks; nan elsewhere.
        lead: as of `Moment`, for the next step.
        is_done: () bool, whether no row has a mask left in its block.
    """

    ids: torch.Tensor
    confidence: torch.Tensor
    lead: torch.Tensor | None
    is_done: torch.Tensor


StepFunction = Callable[[Moment], Stepped]


def block_step(denoiser: Denoiser, rule: CommitRule, options: MaskedOptions, cache: BlockCache) -> StepFunction:
    """The step of a sampler with that rule and those options over that cache, to be run, compiled or captured."""
    mask = denoiser.mask_token_id

    def step(now: Moment) -> Stepped:
        open_ = Open(*(each := open_positions(now.ids, now, now.positions.shape[1], mask)), each[1])
        ids, at = now.ids, open_.positions
        if now.hidden is not None:
            ids, at = torch.cat([ids, ids.masked_fill(now.hidden, mask)]), at.repeat(2, 1)
        logits, lead, _ = ask(denoiser, cache, now.plan, ids, at, now.lead)  # (R, K, V)
        if now.hidden is not None:
            logits = guided(*logits.chunk(2), options.guidance_scale)
        drawn = draws(options, lambda use: uniform(now.keys[:, None], use, now.number, now.step, open_.positions))
        proposal = weighed(denoiser, rule, options, logits, open_, now.positions, drawn)
        commit = rule.select(proposal, open_.masked, now.quota)  # (R, K)
        width = now.ids.shape[1]
        committed = spread(commit.long(), open_.positions, commit, width).bool()  # (R, W)
        after = torch.where(committed, spread(proposal.tokens, open_.positions, commit, width), now.ids)
        confidence = confidence_map(proposal.confidence, open_.positions, open_.shown, width)
        is_done = ~((after.gather(1, now.positions) == mask) & now.valid).any()
        return Stepped(after, confidence, lead, is_done)

    return step
