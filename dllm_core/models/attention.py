"""Attention patterns: who may look at whom, and the form that each attention implementation needs.

A pattern is a bool tensor, True = may attend, shaped (B or 1, 1, Q, K), or a flex attention BlockMask. A bool mask is
right for sdpa only: eager adds it to the scores as 0 and 1, flex ignores it, and both are then silently wrong; a dense
mask under flex on the CPU even ends the process.

Shapes: B batch, L length, Q query positions, K key positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from dllm_core.errors import OptionError

MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Whether a query may look at a key, from the indices (row, head, query, key), as in flex attention."""

FLEX = "flex_attention"


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


def document_mask(document_ids: torch.Tensor) -> MaskMod:
    """Tokens of one document see each other, padding (-1) sees itself only. ``document_ids`` (B, L) int64.

    Positions that restart are not enough to keep packed documents apart once attention runs both ways.
    """

    def allowed(row, head, query, key):
        same = (document_ids[row, query] == document_ids[row, key]) & (document_ids[row, key] >= 0)
        return same | (query == key)

    return allowed


def block_diffusion_mask(blocks: torch.Tensor, document_ids: torch.Tensor) -> MaskMod:
    """The three-part mask over [x_t ; x_0], 2 L positions, where rows hold padding or packed documents.

    Within a document: noised tokens see the noised tokens of their own block and the clean tokens of the blocks before
    it; clean tokens see the clean tokens up to the end of their own block.

    Args:
        blocks: (B, L) int64, the block of each position, counted within its document.
        document_ids: (B, L) int64, -1 = padding, which sees itself only.

    Source: BD3-LM, arXiv 2503.09573, section 3.1 and appendix (block-diagonal, offset block-causal, block-causal).
    """
    length = blocks.shape[1]

    def allowed(row, head, query, key):
        at, to = query % length, key % length
        same = (document_ids[row, at] == document_ids[row, to]) & (document_ids[row, to] >= 0)
        parts = _three_parts(blocks[row, at], blocks[row, to], query >= length, key >= length)
        return (same & parts) | (query == key)

    return allowed


def even_block_diffusion_mask(length: int, block_size: int) -> MaskMod:
    """The three-part mask where every row is one unpadded text; it holds no tensor, so one row stands for all."""

    def allowed(row, head, query, key):
        near, far = query % length // block_size, key % length // block_size
        return _three_parts(near, far, query >= length, key >= length)

    return allowed


def _three_parts(near: torch.Tensor, far: torch.Tensor, clean_query: torch.Tensor, clean_key: torch.Tensor):
    """Own block within a half, and clean blocks before one's own."""
    return ((near == far) & (clean_query == clean_key)) | ((near > far) & clean_key)


def attention_from(
    mask: MaskMod, *, rows: int, queries: int, keys: int, implementation: str | None, device: torch.device
) -> torch.Tensor | BlockMask:
    """A pattern in the form that suits the attention implementation.

    Args:
        mask: who may look at whom.
        rows, queries, keys: B, Q and K.
        implementation: ``config._attn_implementation`` of the model.

    Returns:
        A BlockMask for flex attention, else (B, 1, Q, K) bool.
    """
    if implementation == FLEX:
        return create_block_mask(mask, rows, None, queries, keys, device=str(device))
    row, query, key = (torch.arange(count, device=device) for count in (rows, queries, keys))
    return mask(row[:, None, None, None], None, query[:, None], key).expand(rows, 1, queries, keys)


@lru_cache(maxsize=8)
def even_block_diffusion(
    length: int, block_size: int, implementation: str | None, device: torch.device
) -> torch.Tensor | BlockMask:
    """The three-part mask where every row is one unpadded document: built once for a length, and kept."""
    mask = even_block_diffusion_mask(length, block_size)
    return attention_from(
        mask, rows=1, queries=2 * length, keys=2 * length, implementation=implementation, device=device
    )


def as_model_mask(
    pattern: torch.Tensor | BlockMask, implementation: str | None, dtype: torch.dtype
) -> torch.Tensor | BlockMask:
    """Turn a pattern into what the model's attention implementation understands.

    Args:
        pattern: (B or 1, 1, Q, K) bool, True = may attend; or a BlockMask.
        implementation: ``config._attn_implementation`` of the model.
        dtype: floating-point type of the scores.

    Raises:
        OptionError: the implementation does not take this kind of pattern.
    """
    if isinstance(pattern, BlockMask) != (implementation == FLEX) or implementation not in (
        None,
        "sdpa",
        "eager",
        FLEX,
    ):
        kind = "a BlockMask needs attn_implementation='flex_attention'"
        if not isinstance(pattern, BlockMask):
            kind = "attention patterns need attn_implementation='sdpa' or 'eager'"
        raise OptionError(
            f"{kind}, this model runs {implementation!r}; load it with dllm.load(..., attn_implementation='sdpa')"
        )
    if implementation != "eager":
        return pattern
    bias = torch.zeros(pattern.shape, dtype=dtype, device=pattern.device)
    return bias.masked_fill(~pattern, torch.finfo(dtype).min)
