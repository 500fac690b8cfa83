"""Commit the positions whose entropies together stay within a bound.

Shapes: B rows, M open positions, n = 1 ... M rank of a position, the least uncertain first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm_core.config import at_least
from dllm_core.samplers import CommitRule, Proposal
from dllm_fastdllm.rules.prefix import commit_prefix, surest_first


@dataclass(frozen=True, kw_only=True)
class Entropy(CommitRule):
    """The n positions of least entropy H, for the largest n with H(1) + ... + H(n - 1) <= entropy_bound; at least one.

    The sum without its largest term bounds what the n tokens tell of each other, which is what writing them at once
    ignores. Ranks by the entropy of the tokens that can be written, whatever ``confidence`` is.

    Args:
        entropy_bound: in nats, at least 0 (gamma). 0 commits one token a step unless the model is certain; 0.15 is
            SGLang's choice, 0.6 one for models trained on blocks.

    Raises:
        OptionError: a negative bound.

    Source: EB-Sampler, arXiv:2505.24857, algorithm 1.
    """

    needs: ClassVar[tuple[str, ...]] = ("entropy",)
    entropy_bound: float = 0.15

    def __post_init__(self) -> None:
        at_least("entropy_bound", self.entropy_bound, 0)

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        certainty, order = surest_first(-proposal.entropy, masked)
        entropy = -certainty.double()  # (B, M), rising
        before = entropy.cumsum(1).roll(1, 1)  # the sum in front of each rank
        before[:, :1] = 0
        return commit_prefix(before <= self.entropy_bound, order, masked)
