"""From what a caller says about who may look at whom, to what the model's attention implementation understands.

Shapes: B batch, L length (queries), K key positions.
"""

from __future__ import annotations

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache, PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask

from dllm_core.errors import OptionError
from dllm_core.models.attention import as_model_mask


def attention_pattern(
    config: PreTrainedConfig,
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    attention_bias: torch.Tensor | None,
    cache: Cache | None,
) -> torch.Tensor | BlockMask | None:
    """The mask for every block.

    Args:
        config: its ``_attn_implementation`` decides the form.
        hidden: (B, L, D) input of the first block; gives type and device.
        attention_mask: (B, K), 1 = real token, or a pattern (B or 1, 1, L, K): not floating, true = may attend;
            floating, added to the scores; or a flex attention BlockMask.
        attention_bias: a pattern too, (B or 1, 1, L, K) or (L, K); may go together with a (B, K) mask.
        cache: what earlier positions left.

    Raises:
        OptionError: two patterns at once, or a pattern for an implementation that takes none.
    """
    is_pattern = attention_mask is not None and len(attention_mask.shape) == 4
    if is_pattern and attention_bias is not None:
        raise OptionError("attention_bias and a 4-D attention_mask are two patterns; merge them into one")
    if isinstance(attention_mask, BlockMask):
        return attention_mask
    if attention_bias is None and not is_pattern:
        return _padding_mask(config, hidden, attention_mask, cache)
    pattern, real = (attention_mask, None) if is_pattern else (attention_bias, attention_mask)
    pattern = pattern if pattern.dim() == 4 else pattern[None, None]
    if pattern.is_floating_point():
        return _additive(pattern, real, config._attn_implementation, hidden.dtype)
    pattern = pattern.bool()
    if real is not None:
        pattern = pattern & real.bool()[:, None, None, :]
    return as_model_mask(pattern, config._attn_implementation, hidden.dtype)


def _padding_mask(
    config: PreTrainedConfig, hidden: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None
) -> torch.Tensor | BlockMask | None:
    if attention_mask is None and cache is not None and cache.is_compileable:
        # A static cache hands out its whole buffer: what is not written yet must not be seen.
        keys, _ = cache.get_mask_sizes(hidden.shape[1], 0)
        written = torch.arange(keys, device=hidden.device) < cache.get_seq_length() + hidden.shape[1]
        attention_mask = written.expand(hidden.shape[0], -1)
    # To see that a mask is all ones saves time, but on an accelerator the look itself waits for the device.
    may_look = attention_mask is None or attention_mask.device.type == "cpu"
    return create_bidirectional_mask(
        config=config,
        inputs_embeds=hidden,
        attention_mask=attention_mask,
        past_key_values=cache,
        allow_is_bidirectional_skip=may_look,
    )


def _additive(
    bias: torch.Tensor, real: torch.Tensor | None, implementation: str | None, dtype: torch.dtype
) -> torch.Tensor:
    if implementation not in ("sdpa", "eager", None):
        raise OptionError(
            f"an additive attention bias needs attn_implementation='sdpa' or 'eager', this model runs "
            f"{implementation!r}; load it with attn_implementation='sdpa'"
        )
    # -inf in a whole row (or the lowest float32 cast to bfloat16, which is -inf) would turn the softmax into NaN.
    lowest = torch.finfo(dtype).min
    bias = bias.to(dtype).clamp(min=lowest)
    return bias if real is None else bias.masked_fill(~real.bool()[:, None, None, :], lowest)
