"""Masked language models of transformers, told where their tokens stand and where they can be cut.

FSDP shards each module that ``_no_split_modules`` names. Transformers names the embeddings there too, but their weights
are those of the vocabulary head as well, which belongs to no block; so here only the layers are named.

Shapes: B batch, L length, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask
from transformers import BertForMaskedLM, ModernBertForMaskedLM, PreTrainedConfig, RobertaForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from dllm_core.models.attention import MaskMod, as_model_mask, attention_from

Mask = torch.Tensor | BlockMask


class ByLayers:
    """A model that is sharded by its layers alone.

    Attributes:
        layer: name of their class.
    """

    layer: ClassVar[str]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self._no_split_modules = {self.layer}  # transformers has collected those of the parts by now


class ShardableBert(ByLayers, BertForMaskedLM):
    """BERT; logits (B, L, V).

    Source: google-bert/bert-base-uncased.
    """

    layer: ClassVar[str] = "BertLayer"


class PositionedModernBert(ByLayers, ModernBertForMaskedLM):
    """ModernBERT whose local attention reaches as far as the positions say, not the columns; logits (B, L, V).

    The two are the same where a row's tokens are given in order and without gaps, which is all that the published model
    was made for. Packed rows and [x_t ; x_0] rows are not like that.

    Source: answerdotai/ModernBERT-large; transformers' ``ModernBertModel.forward`` takes one mask a kind of layer.
    """

    layer: ClassVar[str] = "ModernBertEncoderLayer"

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Mask | None = None,
        position_ids: torch.Tensor | None = None,
        **more: Any,
    ) -> MaskedLMOutput:
        """As transformers'; ``attention_mask`` is (B, L), or a pattern in the form of `dllm_core.models.attention`."""
        is_pattern = isinstance(attention_mask, BlockMask) or (attention_mask is not None and attention_mask.dim() == 4)
        if position_ids is not None or is_pattern:
            attention_mask = self._masks(attention_mask, position_ids, input_ids, is_pattern)
        return super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids, **more)

    def _masks(
        self, given: Mask | None, position_ids: torch.Tensor | None, input_ids: torch.Tensor, is_pattern: bool
    ) -> dict[str, Mask]:
        """A mask for each kind of layer: everywhere, and near by."""
        rows, length = input_ids.shape
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device)[None]
        near = within_reach(position_ids.expand(rows, length), self.config.sliding_window)
        implementation, dtype = self.config._attn_implementation, self.get_input_embeddings().weight.dtype
        if is_pattern:
            return {"full_attention": given, "sliding_attention": narrowed(given, near)}
        real = torch.ones_like(input_ids, dtype=torch.bool) if given is None else given.bool()

        def visible(row, head, query, key):
            return real[row, key]

        size = {"rows": rows, "queries": length, "keys": length}
        full, local = (
            attention_from(mask, **size, implementation=implementation, device=input_ids.device)
            for mask in (visible, and_masks(visible, near))
        )
        return {
            "full_attention": as_model_mask(full, implementation, dtype),
            "sliding_attention": as_model_mask(local, implementation, dtype),
        }


def within_reach(position_ids: torch.Tensor, reach: int) -> MaskMod:
    """Tokens see those that are at most ``reach`` positions away. ``position_ids`` (B, L) int64."""

    def allowed(row, head, query, key):
        return (position_ids[row, query] - position_ids[row, key]).abs() <= reach

    return allowed


def narrowed(pattern: Mask, near: MaskMod) -> Mask:
    """A pattern, in the form that the model takes, without what is not near.

    Args:
        pattern: (B or 1, 1, L, L) bool, the same as float scores to be added, or a BlockMask.
    """
    if isinstance(pattern, BlockMask):
        rows, _, queries, keys = pattern.shape
        mask = and_masks(pattern.mask_mod, near)
        return create_block_mask(mask, rows, None, queries, keys, device=str(pattern.kv_num_blocks.device))
    rows, (queries, keys) = pattern.shape[0], pattern.shape[-2:]
    local = attention_from(near, rows=rows, queries=queries, keys=keys, implementation=None, device=pattern.device)
    if pattern.dtype == torch.bool:
        return pattern & local
    return pattern.masked_fill(~local, torch.finfo(pattern.dtype).min)


class PositionedRoberta(ByLayers, RobertaForMaskedLM):
    """RoBERTa whose positions count from 0 as everywhere else; its table begins behind the padding's row.

    Source: FacebookAI/roberta-base; transformers' ``RobertaEmbeddings``, which counts from ``padding_idx + 1``, and
    takes every padding token of the text for padding.
    """

    layer: ClassVar[str] = "RobertaLayer"

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Mask | None = None,
        position_ids: torch.Tensor | None = None,
        **more: Any,
    ) -> MaskedLMOutput:
        """As transformers', with ``position_ids`` (B, L) from 0; None: the columns."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        places = position_ids + first_position(self.config.pad_token_id)
        return super().forward(input_ids, attention_mask=attention_mask, position_ids=places, **more)


def first_position(pad_token_id: int) -> int:
    """The row of RoBERTa's table that the first token of a text has."""
    return pad_token_id + 1
