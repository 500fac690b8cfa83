"""The commit rule of LLaDA 2.x: everything that is sure enough, or at least the quota.

Shapes: B rows, M open positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm_core.config import within
from dllm_core.samplers import CommitRule, Proposal, Quota


@dataclass(frozen=True, kw_only=True)
class ThresholdOrQuota(CommitRule):
    """All proposals above the threshold where they are at least the quota, else the quota's number of the surest.

    Args:
        threshold: from 0 to 1; 0.95 is the published choice, lower is faster.

    Raises:
        OptionError: a threshold outside [0, 1].

    Source: LLaDA 2.0, arXiv 2512.15745, section 4; inclusionAI/LLaDA2.0-mini ``modeling_llada2_moe.py``, generate.
    """

    threshold: float = 0.95

    def __post_init__(self) -> None:
        within("threshold", self.threshold, 0.0, 1.0)

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        quota = quota.clamp(min=1)
        sure = masked & (proposal.confidence > self.threshold)
        surest = masked & Quota().select(proposal, masked, quota)
        return torch.where(sure.sum(1, keepdim=True) >= quota[:, None], sure, surest)
