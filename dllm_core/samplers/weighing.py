"""What a step proposes, from the model's answer: drawn, weighed by the commit rule's history, and measured for it.

Shapes: R rows, K block size, M open positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers import planning
from dllm_core.samplers.commit import CommitRule
from dllm_core.samplers.options import MaskedOptions
from dllm_core.samplers.proposals import Draws, Proposal, propose, without_borrowed_lead
from dllm_core.samplers.state import Open


def draws(options: MaskedOptions, noise: Callable[[int], torch.Tensor]) -> Draws:
    """The numbers that a proposal needs; ``noise`` gives those (R, M) of a purpose."""
    return Draws(
        token=noise(planning.TOKEN) if options.temperature > 0 else None,
        confidence=noise(planning.CONFIDENCE) if options.confidence == "random" else None,
        priority=noise(planning.PRIORITY) if options.confidence_temperature > 0 else None,
    )


def weighed(
    denoiser: Denoiser,
    rule: CommitRule,
    options: MaskedOptions,
    logits: torch.Tensor,
    open_: Open,
    block: torch.Tensor,
    drawn: Draws,
    history: object | None = None,
) -> Proposal:
    """One token and one confidence for each open position, and what the commit rule needs to know of them.

    Args:
        logits: (R, M, V), used up.
        open_: where the step proposes.
        block: (R, K) int64, the positions of the block.
        drawn: numbers of this step.
        history: what the rule keeps of the block's steps.
    """
    size = block.shape[1]
    places = (open_.positions - block[:, :1]).clamp(0, size - 1).where(open_.masked, size)  # (R, M)
    logits = rule.weigh(logits, places, history)
    proposal = propose(logits, denoiser.mask_token_id, options, drawn, rule.needs)
    told = {"places": places, "history": history}
    proposal = replace(proposal, **{name: value for name, value in told.items() if name in rule.needs})
    if denoiser.logits_are_shifted:
        return without_borrowed_lead(proposal, open_.positions, open_.masked)
    return proposal
