"""Commit widely, because what is wrong can be taken back.

Shapes: B rows, M open positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm_core.config import within
from dllm_core.samplers import CommitRule, Proposal
from dllm_fastdllm.rules.prefix import commit_prefix, surest_first

LEAST, MOST, SHARE = 5, 20, 0.7  # of the masks that are left, in tokens and as a part of them


@dataclass(frozen=True, kw_only=True)
class Draft(CommitRule):
    """Every proposal above the threshold, but no more than 70 % of the masks left, or 5 if that is less, or 20 if more.

    Where none is, the surest. Meant for samplers that look at what was written once more, such as ``fastdllm/wino``.

    Args:
        threshold: from 0 to 1.

    Raises:
        OptionError: a threshold outside [0, 1].

    Source: WINO, arXiv:2507.18578; Feng-Hong/WINO-DLLM LLaDA/decoding.py, decoding_wino, ``max_accept``.
    """

    threshold: float = 0.6

    def __post_init__(self) -> None:
        within("threshold", self.threshold, 0.0, 1.0)

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        confidence, order = surest_first(proposal.confidence, masked)
        cap = (masked.sum(1) * SHARE).long().clamp(LEAST, MOST)  # (B,)
        rank = torch.arange(confidence.shape[1], device=confidence.device)
        return commit_prefix((confidence > self.threshold) & (rank < cap[:, None]), order, masked)
