"""Cross-entropy of the hidden tokens only: the rows that the loss needs are the only ones that meet the vocabulary.

Shapes: B batch, L length, V vocabulary, N hidden tokens of the batch in row-major order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

    from dllm_core.models.denoiser import Denoiser


def masked_nll(
    denoiser: Denoiser,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    masked: Tensor,
    targets: Tensor,
    *,
    position_ids: Tensor | None = None,
    attention: Tensor | BlockMask | None = None,
) -> Tensor:
    """-log p(token) in nats of every hidden token; (N,) float32, or float64 where the model is.

    Args:
        input_ids: (B, L) int64, noised.
        attention_mask: (B, L) bool or None.
        masked: (B, L) bool, the N positions to score.
        targets: (B, L) int64, the clean tokens.
        position_ids, attention: as of `Denoiser.nll`.
    """
    return denoiser.nll(
        input_ids, attention_mask, at=masked, targets=targets, position_ids=position_ids, attention=attention
    )
