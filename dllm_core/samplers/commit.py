"""Commit rules: which of the proposals are written this step.

Shapes: B rows, M open positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from dllm_core.samplers.proposals import Proposal


class BlockSize(NamedTuple):
    """What a rule must know to keep a history of a block.

    Args:
        rows: B.
        places: K, positions of the block; filler has place K, so a buffer of (B, K + 1, ...) can be written anywhere.
        vocab_size: V.
        mask_token_id: the token that is never written.
        device: of the proposals.
    """

    rows: int
    places: int
    vocab_size: int
    mask_token_id: int
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class CommitRule:
    """A rule is a frozen dataclass; its fields are the options that it adds to the sampler's.

    A rule keeps nothing itself, because one object serves all runs of a sampler. What it remembers of a block's earlier
    steps is made by `remember` when the block is opened, lives with the run, and goes with the block.

    Attributes:
        needs: what it reads beside tokens, confidence and priority, out of ``entropy``, ``best_two``, ``log_probs``,
            ``places`` and ``history`` (see `Proposal`); nothing else is measured.
        follows_quota: every step commits exactly the quota, so the loop knows on the host when a block is complete.
            Otherwise a rule commits at least one token a step in every row that has a mask left.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    follows_quota: ClassVar[bool] = False

    def remember(self, size: BlockSize) -> object:
        """Where the history of a block is kept, for rules that need one: tensors with a row for each of the run's.

        `weigh` and `select` change them in place. Rows only leave a run between blocks, so none outlives its history.
        """
        raise NotImplementedError

    def weigh(self, logits: torch.Tensor, places: torch.Tensor, history: object | None) -> torch.Tensor:
        """The logits that tokens and confidence are taken from; as they are, unless a rule overrides this.

        Args:
            logits: (B, M, V), not to be changed in place.
            places: (B, M) int64, where each position stands in its row's block; filler stands behind the block.
            history: what `remember` gave; None for rules that need none.

        Returns:
            (B, M, V).
        """
        return logits

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        """Which open positions are written.

        Args:
            proposal: tokens, confidence and priority, (B, M) each, and what the rule ``needs``.
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
