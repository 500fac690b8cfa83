"""The time of the process as a vector that every token's embedding gets.

Shapes: B batch, F features, H hidden.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FEATURES = 256
SCALE = 1000.0  # times lie in [0, 1], the periods of the sinusoids between 2 pi and 10,000 * 2 pi
LONGEST = 10_000.0


class TimeEmbedding(nn.Module):
    """Sinusoids of the time through two layers; the second starts at zero, so a converted model starts as its source.

    Source: Vaswani et al., arXiv:1706.03762, section 3.5; Peebles and Xie, arXiv:2212.09748 (layers that start at 0).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, width)
        self.outer = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """(B,) float in [0, 1] -> (B, H)."""
        features = sinusoids(time).to(self.inner.weight.dtype)  # (B, F)
        return self.outer(nn.functional.silu(self.inner(features)))


def sinusoids(time: Tensor) -> Tensor:
    """(B,) -> (B, F) float32: cosines, then sines, of falling frequency."""
    half = FEATURES // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device) / half
    angles = SCALE * time.float()[:, None] * torch.exp(-math.log(LONGEST) * steps)  # (B, F / 2)
    return torch.cat([angles.cos(), angles.sin()], -1)
