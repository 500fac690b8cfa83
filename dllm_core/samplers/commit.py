"""Commit rules: which of the proposals are written this step.

Shapes: B rows, M open positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm_core.samplers.proposals import Proposal


@dataclass(frozen=True, kw_only=True)
class CommitRule:
    """A rule is a frozen dataclass; its fields are the options that it adds to the sampler's.

    Attributes:
        follows_quota: every step commits exactly the quota, so the loop knows on the host when a block is complete.
            Otherwise a rule commits at least one token a step in every row that has a mask left.
    """

    follows_quota: ClassVar[bool] = False

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        """Which open positions are written.

        Args:
            proposal: tokens, confidence and priority, (B, M) each.
            masked: (B, M) bool; False marks filler in rows with fewer masks than others.
            quota: (B,) int64, what the schedule would commit in each row this step.

        Returns:
            (B, M) bool, True only where ``masked`` is.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Quota(CommitRule):
    """The quota's number of positions, surest first; ties go to the left.

    Source: LLaDA (arXiv 2502.09992), algorithm 5 (low-confidence remasking), generate.py.
    """

    follows_quota: ClassVar[bool] = True

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        priority = proposal.priority.masked_fill(~masked, -torch.inf)
        order = priority.argsort(dim=1, descending=True, stable=True)  # (B, M)
        chosen = torch.arange(order.shape[1], device=order.device) < quota[:, None]
        return torch.zeros_like(masked).scatter(1, order, chosen)
