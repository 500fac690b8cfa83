"""Commit as many as greedy parallel decoding is safe for, up to a factor.

Shapes: B rows, M open positions, n = 1 ... M rank of a position, the surest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm_core.config import at_least
from dllm_core.samplers import CommitRule, Proposal
from dllm_fastdllm.rules.prefix import commit_prefix, surest_first


@dataclass(frozen=True, kw_only=True)
class Factor(CommitRule):
    """The n surest proposals, for the largest n with confidence(n) >= 1 - factor / (n + 1); at least one.

    With factor 1 and exact marginals the product of the marginals has the same best text as the joint (theorem 1:
    (n + 1) eps <= 1). Larger factors commit more and promise less; 0 commits one token a step unless the model is
    certain.

    Args:
        factor: at least 0; 0.75 to 1 are usual.

    Raises:
        OptionError: a negative factor.

    Source: Fast-dLLM, arXiv:2505.22618, theorem 1 and section 3.3.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        at_least("factor", self.factor, 0)

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        confidence, order = surest_first(proposal.confidence, masked)
        rank = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
        return commit_prefix(confidence >= 1 - self.factor / (rank + 1), order, masked)
