"""Which of the proposed tokens a step writes.

Shapes: B rows, M open positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dllm_core import CommitRule
from dllm_core.config import within
from dllm_core.samplers import Proposal


@dataclass(frozen=True, kw_only=True)
class PluginTemplateRule(CommitRule):
    """Every token whose confidence is at least ``least``, and the surest one in any case, so that a step never idles.

    Args:
        least: the lowest confidence, from 0 (all at once) to 1 (about one a step).

    Raises:
        OptionError: a value out of range.
    """

    least: float = 0.9

    def __post_init__(self) -> None:
        within("least", self.least, 0, 1)

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        """(B, M) bool, True only where ``masked`` is. The quota is what a schedule would write; it is not used."""
        confidence = proposal.confidence
        # Suppressed tokens have confidence -inf; they still come before what is no mask at all.
        ranked = confidence.clamp(min=torch.finfo(confidence.dtype).min).masked_fill(~masked, -torch.inf)
        surest = ranked.argsort(dim=1, descending=True, stable=True)[:, :1]
        first = torch.zeros_like(masked).scatter(1, surest, True)
        return masked & (first | (confidence >= self.least))
