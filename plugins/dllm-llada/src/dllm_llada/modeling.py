"""LLaDA: a Llama-like transformer that attends in both directions, with the published checkpoints' weight names.

Source: LLaDA, arXiv 2502.09992; maths and names of GSAI-ML/LLaDA-8B-Base ``modeling_llada.py`` (own code).

Shapes: B batch, L length (queries), K key positions, D d_model, H heads, G key and value heads, C head_dim,
F MLP width, V embedding rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, Cache, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from dllm_llada.configuration import LLaDAConfig
from dllm_llada.initialization import Role, initial_std
from dllm_llada.masks import attention_pattern

LAYER_NORM_EPS = 1e-5  # the published code reads rms_norm_eps for the two RMS norms only


def swiglu(hidden: torch.Tensor) -> torch.Tensor:
    """Gate the first half by the second. (..., F) -> (..., F / 2)"""
    value, gate = hidden.chunk(2, dim=-1)
    return functional.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "relu": functional.relu,
    "swiglu": swiglu,
}


class LLaDARMSNorm(nn.Module):
    """RMSNorm computed in float32 and scaled after the cast back; ``unit_offset`` scales by 1 + weight (Gemma)."""

    def __init__(self, size: int, eps: float, *, affine: bool, bias: bool, unit_offset: bool) -> None:
        super().__init__()
        self.eps = eps
        self.unit_offset = unit_offset
        self.weight = nn.Parameter(torch.ones(size)) if affine else None
        self.bias = nn.Parameter(torch.zeros(size)) if affine and bias else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(hidden.dtype)
        if self.weight is None:
            return normed
        scaled = normed * (1 + self.weight if self.unit_offset else self.weight)
        return scaled if self.bias is None else scaled + self.bias


def build_norm(config: LLaDAConfig, size: int, *, affine: bool) -> nn.Module:
    """The normalization that ``layer_norm_type`` names, over ``size`` features."""
    bias = config.norm_bias
    if config.layer_norm_type == "default":
        return nn.LayerNorm(size, eps=LAYER_NORM_EPS, elementwise_affine=affine, bias=bias)
    gemma = config.layer_norm_type == "gemma_rms"
    return LLaDARMSNorm(size, config.rms_norm_eps, affine=affine, bias=bias, unit_offset=gemma)


def rotary_angles(position_ids: torch.Tensor, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotary angles. (B, L) int64 -> two (B, 1, L, C) float32.

    Computed from the positions each time: a buffer would lose its precision under ``model.to(bfloat16)``.
    Source: RoPE, arXiv 2104.09864, in the half-split form of GPT-NeoX.
    """
    exponent = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angles = position_ids[:, None, :, None].float() * (1.0 / theta**exponent)  # (B, 1, L, C / 2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, full_precision: bool) -> torch.Tensor:
    """Apply rotary embedding in float32, or in the type of ``states``. (B, H, L, C) -> same shape and type."""
    work = states.float() if full_precision else states
    first, second = work.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (work * cos.to(work.dtype) + turned * sin.to(work.dtype)).to(states.dtype)


def eager_attention_forward(
    module: LLaDABlock,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float,
    is_causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention: query (B, H, L, C), key and value (B, G, K, C), additive mask -> (B, L, H, C), (B, H, L, K)."""
    assert not is_causal
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling  # (B, H, L, K)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class LLaDABlock(GradientCheckpointingLayer):
    """Pre-norm attention and MLP, each on the residual stream. Flat, because the published weight names are."""

    def __init__(self, config: LLaDAConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.fused = config.block_type == "sequential"
        self.num_key_value_groups = config.n_heads // config.num_key_value_heads
        self.is_causal = False
        self.activation = ACTIVATIONS[config.activation_type]
        self.dropout = nn.Dropout(config.residual_dropout)
        width, inner, kv_width = config.d_model, config.intermediate_size, config.num_key_value_heads * config.head_dim
        self.kv_width = kv_width

        self.attn_norm = build_norm(config, width, affine=config.layer_norm_with_affine)
        self.ff_norm = build_norm(config, width, affine=config.layer_norm_with_affine)
        if self.fused:
            self.att_proj = self._linear(width, width + 2 * kv_width, "in", bias=config.qkv_bias)
        else:
            self.q_proj = self._linear(width, width, "in", bias=config.qkv_bias)
            self.k_proj = self._linear(width, kv_width, "in", bias=config.qkv_bias)
            self.v_proj = self._linear(width, kv_width, "in", bias=config.qkv_bias)
            self.up_proj = self._linear(width, inner, "in", bias=config.include_bias)
        if config.attention_layer_norm:
            self.q_norm = build_norm(config, width, affine=config.attention_layer_norm_with_affine)
            self.k_norm = build_norm(config, kv_width, affine=config.attention_layer_norm_with_affine)
        self.attn_out = self._linear(width, width, "out", bias=config.include_bias)
        self.ff_proj = self._linear(width, inner, "in", bias=config.include_bias)
        gated = inner // 2 if config.activation_type == "swiglu" else inner
        self.ff_out = self._linear(gated, width, "out", bias=config.include_bias)

    def _linear(self, fan_in: int, fan_out: int, role: Role, *, bias: bool) -> nn.Linear:
        return _with_initial_std(nn.Linear(fan_in, fan_out, bias=bias), self.config, role, fan_in, self.layer_idx)

    def forward(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """(B, L, D) -> (B, L, D)."""
        attended = self._attention(self.attn_norm(hidden), attention_mask, rotary, past_key_values)
        hidden = hidden + self.dropout(attended)
        return hidden + self.dropout(self._mlp(self.ff_norm(hidden)))

    def _attention(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        query, key, value = self._query_key_value(hidden)
        full = self.config.rope_full_precision
        query, key = rotate(query, *rotary, full_precision=full), rotate(key, *rotary, full_precision=full)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, G, K, C), keys already rotated
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, _ = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.config.head_dim**-0.5,
            dropout=self.config.attention_dropout if self.training else 0.0,
            is_causal=False,
        )
        return self.attn_out(attended.reshape(*hidden.shape[:2], -1))

    def _query_key_value(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, L, D) -> (B, H, L, C), (B, G, L, C), (B, G, L, C)."""
        if self.fused:
            sizes = (self.config.d_model, self.kv_width, self.kv_width)
            query, key, value = self.att_proj(hidden).split(sizes, dim=-1)
        else:
            query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        if self.config.attention_layer_norm:
            query, key = self.q_norm(query).to(query.dtype), self.k_norm(key).to(key.dtype)
        heads = (*hidden.shape[:2], -1, self.config.head_dim)
        return tuple(states.view(heads).transpose(1, 2) for states in (query, key, value))

    def _mlp(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = self.activation(self.ff_proj(hidden))
        return self.ff_out(inner if self.fused else inner * self.up_proj(hidden))


def _with_initial_std(module: nn.Module, config: LLaDAConfig, role: Role, fan_in: int, layer: int = 0) -> nn.Module:
    """Note on the module how it is drawn: `_init_weights` sees one module at a time and cannot know its place."""
    module.initial_std = initial_std(config, role, fan_in, layer)
    return module


class LLaDAPreTrainedModel(PreTrainedModel):
    config_class = LLaDAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("LLaDABlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.embedding_size = embedding.weight.shape[0]
        return embedding

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LLaDARMSNorm | nn.LayerNorm):
            if module.weight is not None:
                # Gemma's norm scales by 1 + weight
                (init.zeros_ if getattr(module, "unit_offset", False) else init.ones_)(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Embedding):
            std, cutoff = getattr(module, "initial_std", (self.config.init_std, None))
            if cutoff is None:
                init.normal_(module.weight, std=std)
            else:
                init.trunc_normal_(module.weight, std=std, a=-cutoff, b=cutoff)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)


class LLaDAModel(LLaDAPreTrainedModel):
    """Embedding, blocks and final norm. It holds the vocabulary head, as the weight names ask, but does not call it."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"transformer.ff_out.weight": "transformer.wte.weight"}

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        config.validate_architecture()  # a field may have been set after construction
        rows, width = config.embedding_rows, config.d_model
        head = nn.Linear(width, rows, bias=config.include_bias and not config.weight_tying)
        self.transformer = nn.ModuleDict(
            {
                "wte": _with_initial_std(nn.Embedding(rows, width), config, "embedding", width),
                "emb_drop": nn.Dropout(config.embedding_dropout),
                **_blocks(config),
                "ln_f": build_norm(config, width, affine=config.layer_norm_with_affine),
                "ff_out": _with_initial_std(head, config, "head", width),
            }
        )
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def blocks(self) -> list[LLaDABlock]:
        """The blocks in order, grouped or not."""
        if self.config.block_group_size == 1:
            return list(self.transformer["blocks"])
        return [block for group in self.transformer["block_groups"] for block in group]

    def get_input_embeddings(self) -> nn.Embedding:
        return self.transformer["wte"]

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.transformer["wte"] = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.transformer["ff_out"]

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.transformer["ff_out"] = new_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        attention_bias: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """See `LLaDAModelLM.forward`; `last_hidden_state` (B, L, D) is what the head reads."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden = self.transformer["wte"](input_ids) if inputs_embeds is None else inputs_embeds  # (B, L, D)
        if self._keeps_cache(use_cache) and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        position_ids = _positions(position_ids, hidden, past_key_values)
        mask = attention_pattern(self.config, hidden, attention_mask, attention_bias, past_key_values)
        rotary = rotary_angles(position_ids, self.config.head_dim, self.config.rope_theta)
        hidden = hidden * self.config.d_model**0.5 if self.config.input_emb_norm else hidden
        hidden = self.transformer["emb_drop"](hidden)

        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states: tuple[torch.Tensor, ...] = ()
        for block in self.blocks:
            states = (*states, hidden) if wanted else ()
            hidden = block(hidden, mask, rotary, past_key_values=past_key_values)
        hidden = self.transformer["ln_f"](hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=(*states, hidden) if wanted else None,
        )

    def _keeps_cache(self, use_cache: bool | None) -> bool:
        wanted = self.config.use_cache if use_cache is None else use_cache
        return wanted and not (self.gradient_checkpointing and self.training)


def _blocks(config: LLaDAConfig) -> dict[str, nn.ModuleList]:
    """The blocks under the name that the checkpoints give them: ``blocks.I`` or ``block_groups.G.I``."""
    blocks = [LLaDABlock(config, index) for index in range(config.n_layers)]
    size = config.block_group_size
    if size == 1:
        return {"blocks": nn.ModuleList(blocks)}
    groups = [nn.ModuleList(blocks[start : start + size]) for start in range(0, config.n_layers, size)]
    return {"block_groups": nn.ModuleList(groups)}


def _positions(position_ids: torch.Tensor | None, hidden: torch.Tensor, cache: Cache | None) -> torch.Tensor:
    """Positions of the queries, (B or 1, L) int64: as given, or counted on from what the cache holds."""
    if position_ids is not None:
        return position_ids
    seen = 0 if cache is None else cache.get_seq_length()
    return (torch.arange(hidden.shape[1], device=hidden.device) + seen)[None]


class LLaDAModelLM(LLaDAPreTrainedModel):
    """LLaDA with its vocabulary head: the class of the published checkpoints."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"model.transformer.ff_out.weight": "model.transformer.wte.weight"}

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        """The module that `forward` calls, tied or not, so that a hook on it can choose the rows to project."""
        return self.model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.model.set_output_embeddings(new_embeddings)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        attention_bias: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """Score every position: row i is about the token at position i. Attention runs in both directions.

        Args:
            input_ids: (B, L) int64, or inputs_embeds: (B, L, D).
            attention_mask: (B, K), 1 = real token; or a pattern (B or 1, 1, L, K): bool, True = may attend, or
                floating, added to the scores. K counts the cached positions too.
            attention_bias: a pattern as above, or (L, K); goes together with a (B, K) mask.
            past_key_values: keys (after rotary embedding) and values of earlier positions.
            use_cache: return them, with this call's added; None: as the config says (off in the checkpoints).
            output_hidden_states: return the input of every block and the final normed state, each (B, L, D).
            position_ids: (B or 1, L) int64; None: counted on from the cache's length.
            labels, output_attentions: must be None or False.

        Returns:
            logits (B, L, V), past_key_values, hidden_states.

        Raises:
            ValueError: labels or attentions were asked for, or not exactly one input was given.
            OptionError: the pattern does not go with the attention implementation.
        """
        if labels is not None or output_attentions:
            asked = "labels" if labels is not None else "output_attentions"
            raise ValueError(f"LLaDAModelLM takes no {asked}; the loss comes from an objective: dllm.objective('mdlm')")
        outputs = self.model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            attention_bias=attention_bias,
            past_key_values=past_key_values,
            position_ids=position_ids,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        logits = self.get_output_embeddings()(outputs.last_hidden_state)
        if self.config.scale_logits:
            logits = logits * self.config.d_model**-0.5
        return CausalLMOutputWithPast(
            logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )


AutoModel.register(LLaDAConfig, LLaDAModelLM, exist_ok=True)
