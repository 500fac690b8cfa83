"""Commit everything that is sure enough.

Shapes: B rows, M open positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm_core.config import within
from dllm_core.samplers import CommitRule, Proposal
from dllm_fastdllm.rules.prefix import commit_prefix, surest_first


@dataclass(frozen=True, kw_only=True)
class Threshold(CommitRule):
    """Every proposal at least as sure as the threshold; where none is, the surest.

    Args:
        threshold: from 0 (everything at once) to 1 (one token a step); 0.9 is the published choice for LLaDA.

    Raises:
        OptionError: a threshold outside [0, 1].

    Source: Fast-dLLM, arXiv:2505.22618, section 3.3.
    """

    threshold: float = 0.9

    def __post_init__(self) -> None:
        within("threshold", self.threshold, 0.0, 1.0)

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        confidence, order = surest_first(proposal.confidence, masked)
        return commit_prefix(confidence >= self.threshold, order, masked)
