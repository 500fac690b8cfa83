"""Attention patterns: who may look at whom, and the form that each attention implementation needs.

A pattern is a bool tensor, True = may attend, shaped (B or 1, 1, Q, K). A bool mask is right for sdpa only: eager adds
it to the scores as 0 and 1, flex ignores it, and both are then silently wrong.

Shapes: B batch, L length, Q query positions, K key positions.
"""

from __future__ import annotations

import torch

from dllm_core.errors import OptionError


def padding_pattern(attention_mask: torch.Tensor) -> torch.Tensor:
    """Everyone may look at the real tokens. ``attention_mask`` (B, L) bool -> (B, 1, L, L) bool."""
    return attention_mask[:, None, None, :].expand(-1, 1, attention_mask.shape[1], -1)


def block_causal_pattern(length: int, block_size: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Each block of positions sees itself and the blocks before it. -> (1, 1, L, L) bool.

    Source: BD3-LM, arXiv 2503.09573, section 3 (block-causal attention).
    """
    if block_size < 1:
        raise OptionError(f"block_size must be at least 1, got {block_size}")
    block = torch.arange(length, device=device) // block_size
    return (block[:, None] >= block[None, :])[None, None]


def as_model_mask(pattern: torch.Tensor, implementation: str | None, dtype: torch.dtype) -> torch.Tensor:
    """Turn a pattern into what the model's attention implementation understands.

    Args:
        pattern: (B or 1, 1, Q, K) bool, True = may attend.
        implementation: ``config._attn_implementation`` of the model.
        dtype: floating-point type of the scores.

    Raises:
        OptionError: the implementation takes no dense pattern (flash and flex attention).
    """
    if implementation in ("sdpa", None):
        return pattern
    if implementation == "eager":
        bias = torch.zeros(pattern.shape, dtype=dtype, device=pattern.device)
        return bias.masked_fill(~pattern, torch.finfo(dtype).min)
    raise OptionError(
        f"attention patterns need attn_implementation='sdpa' or 'eager', this model runs {implementation!r}; "
        "load it with dllm.load(..., attn_implementation='sdpa')"
    )
