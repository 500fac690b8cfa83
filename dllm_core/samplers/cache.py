"""Cache policies: which positions of the canvas each step computes anew.

Shapes: B rows, L canvas length, M open positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm_core.models import Denoiser


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """A policy is a frozen dataclass; its fields are the options that it adds to the sampler's.

    Attributes:
        needs_kv_cache: only families that declare ``supports_kv_cache`` can use it.
    """

    needs_kv_cache: ClassVar[bool] = False

    def logits(
        self, denoiser: Denoiser, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, at: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        """Logits at the open positions and the number of positions computed for them.

        Args:
            input_ids: (B, L) int64, the canvas.
            attention_mask: (B, L) bool or None.
            at: (B, M) int64, the open positions.

        Returns:
            (B, M, V) and a count.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class NoCache(CachePolicy):
    """Every step computes the whole canvas: exact."""

    def logits(
        self, denoiser: Denoiser, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, at: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        return denoiser.logits(input_ids, attention_mask, at=at), input_ids.numel()
