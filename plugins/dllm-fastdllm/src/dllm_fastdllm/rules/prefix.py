"""What rules that commit the n surest have in common.

Shapes: B rows, M open positions.
"""

from __future__ import annotations

import torch


def surest_first(confidence: torch.Tensor, masked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Confidences from the surest down, filler last, and where each stands; equal ones from the left. Two (B, M)."""
    ordered = confidence.float().masked_fill(~masked, -torch.inf).sort(dim=1, descending=True, stable=True)
    return ordered.values, ordered.indices


def commit_prefix(accepted: torch.Tensor, order: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """The positions up to the last accepted rank, and always the surest.

    Args:
        accepted: (B, M) bool by rank, the surest first.
        order: (B, M) int64, the position of each rank.
        masked: (B, M) bool.

    Returns:
        (B, M) bool by position, True only where ``masked`` is.
    """
    accepted = accepted.clone()
    accepted[:, :1] = True
    # A rank is in as soon as one behind it is: the largest n, not the first failure.
    prefix = accepted.flip(1).cummax(1).values.flip(1)
    return torch.zeros_like(masked).scatter(1, order, prefix) & masked
