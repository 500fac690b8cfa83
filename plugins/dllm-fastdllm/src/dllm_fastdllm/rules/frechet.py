"""Commit as many as the Frechet bounds certify.

Shapes: B rows, M open positions, n = 1 ... M rank of a position, the surest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm_core.config import within
from dllm_core.samplers import CommitRule, Proposal
from dllm_fastdllm.rules.prefix import commit_prefix, surest_first


@dataclass(frozen=True, kw_only=True)
class Frechet(CommitRule):
    """The n surest proposals, for the largest n whose joint leads every other choice by more than delta; at least one.

    The joint of the n proposals is at least sum(c) - (n - 1), any other choice of tokens at most 1 - c(n). Where all
    confidences are equal this is `Factor` with factor 1 - delta; otherwise it commits as many or more.

    Args:
        delta: from 0 to 1; 0 commits most.

    Raises:
        OptionError: delta outside [0, 1].

    Source: Fast-dLLM++, arXiv:2606.02955.
    """

    delta: float = 0.25

    def __post_init__(self) -> None:
        within("delta", self.delta, 0.0, 1.0)

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        confidence, order = surest_first(proposal.confidence, masked)
        doubt = 1 - confidence.double()  # (B, M); float32 would lose the differences that decide at high confidence
        lead = 1 - doubt.cumsum(1) - doubt  # lower bound of the joint minus upper bound of the rest
        return commit_prefix(lead > self.delta, order, masked)
