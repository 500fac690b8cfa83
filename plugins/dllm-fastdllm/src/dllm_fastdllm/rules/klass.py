"""Commit what is sure and has stopped moving.

Shapes: B rows, M open positions, K places of the block, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm_core.config import at_least, within
from dllm_core.samplers import BlockSize, CommitRule, Proposal
from dllm_core.samplers.statistics import NOTHING
from dllm_fastdllm.rules.prefix import surest_first


@dataclass(frozen=True)
class Stillness:
    """What `Klass` knows of a block; place K takes what is written for filler.

    Args:
        log_probs: (B, K + 1, V) float32, each position's distribution at the step before.
        calm: (B, K + 1) int64, for how many steps in a row it has hardly moved.
        seen: (B, K + 1) bool, whether there was a step before.
    """

    log_probs: torch.Tensor
    calm: torch.Tensor
    seen: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Klass(CommitRule):
    """Every proposal above the threshold whose distribution has hardly moved for some steps; where none is, the quota.

    Moving is measured by KL(p_t || p_{t-1}), the distribution of this step against that of the step before. It takes
    4 K V bytes a row, 16 MB for a block of 32 and 126,000 tokens. The history begins with each block.

    Args:
        threshold: the confidence that is asked for, from 0 to 1 (conf_threshold).
        kl_threshold: in nats, at least 0; a step below it counts as still. 0.001 to 0.015 by task as published.
        still_steps: for how many steps in a row, at least 1 (history_length).

    Raises:
        OptionError: an option out of range.

    Source: KLASS, arXiv:2511.05664, section 3; shkim0116/KLASS src/model/llada_klass.py with its strategy ``all``.
    """

    needs: ClassVar[tuple[str, ...]] = ("log_probs", "places", "history")
    threshold: float = 0.9
    kl_threshold: float = 0.01
    still_steps: int = 2

    def __post_init__(self) -> None:
        within("threshold", self.threshold, 0.0, 1.0)
        at_least("kl_threshold", self.kl_threshold, 0)
        at_least("still_steps", self.still_steps, 1)

    def remember(self, size: BlockSize) -> Stillness:
        places = size.rows, size.places + 1
        return Stillness(
            log_probs=torch.zeros(*places, size.vocab_size, device=size.device),
            calm=torch.zeros(places, dtype=torch.int64, device=size.device),
            seen=torch.zeros(places, dtype=torch.bool, device=size.device),
        )

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        calm = self._note(proposal.history, proposal.places, proposal.log_probs)
        ready = masked & (proposal.confidence > self.threshold) & (calm >= self.still_steps)
        _, order = surest_first(proposal.priority, masked)
        count = quota.clamp(min=1).where(~ready.any(1), 0)
        fallback = torch.arange(order.shape[1], device=order.device) < count[:, None]
        return masked & (ready | torch.zeros_like(masked).scatter(1, order, fallback))

    def _note(self, history: Stillness, places: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
        """Take this step's distributions down. -> (B, M), the still steps of each position"""
        rows = torch.arange(len(places), device=places.device)[:, None]
        moved = divergence(log_probs, history.log_probs[rows, places])
        is_still = history.seen.gather(1, places) & (moved < self.kl_threshold)
        calm = (history.calm.gather(1, places) + 1).where(is_still, 0)
        history.log_probs[rows, places] = log_probs  # whole rows: many times faster than to scatter each number
        history.calm.scatter_(1, places, calm)
        history.seen.scatter_(1, places, True)
        return calm


def divergence(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """KL(now || before) in nats, of log probabilities (..., V). -> (...)"""
    return (now.exp() * (now.clamp(min=NOTHING) - before.clamp(min=NOTHING))).sum(-1)  # 0 for what cannot happen
