"""LLaDA-MoE: transformers' Qwen3-MoE classes attending in both directions, published fields mapped onto theirs.

The two architectures compute the same: per-head norms of query and key, half-split rotary embedding, and a softmax
over all experts whose largest entries weigh the chosen experts without renormalisation. Experts are computed by
grouped matrix products (transformers' experts implementation), and the weight names are the published ones.

Source: inclusionAI/LLaDA-MoE-7B-A1B-Base, ``modeling_lladamoe.py`` and ``config.json``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeForCausalLM

from dllm_core.errors import ModelLoadError
from dllm_llada.fields import take_computed

# What published code can be told to compute and the shared classes cannot. A field that is absent has the first value.
COMPUTED: dict[str, tuple[object, ...]] = {
    "qk_layernorm": (True,),
    "clip_qkv": (None,),
    "shared_expert_intermediate_size": (None,),
    "moe_router_enable_expert_bias": (False, None),
    "moe_router_score_function": ("softmax", None),
    "router_num_group": (None,),
    "router_topk_group": (None,),
    "partial_rotary_factor": (1.0, None),
    "rope_scaling": (None,),
}


class LLaDAMoEConfig(Qwen3MoeConfig):
    """Architecture of a LLaDA-MoE model; the defaults are those of LLaDA-MoE-7B-A1B.

    Published names are read as well: ``expert_intermediate_size``, ``dense_intermediate_size``, ``moe_layer_freq``.

    Raises:
        ModelLoadError: a field holds what this model does not compute.
    """

    model_type = "lladamoe"
    attribute_map: ClassVar[dict[str, str]] = {
        "num_experts": "num_local_experts",
        "expert_intermediate_size": "moe_intermediate_size",
        "dense_intermediate_size": "intermediate_size",
    }

    vocab_size: int = 157184
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    use_cache: bool = False
    moe_intermediate_size: int = 1024
    num_experts_per_tok: int = 8
    num_experts: int = 64
    moe_layer_freq: list[int] | None = None
    mask_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        take_computed("LLaDA-MoE", kwargs, COMPUTED)
        kwargs.setdefault("rope_theta", 50000.0)
        if self.moe_layer_freq is not None:
            self.mlp_only_layers = [layer for layer, sparse in enumerate(self.moe_layer_freq) if not sparse]
        if self.norm_topk_prob:
            raise ModelLoadError("LLaDA-MoE config has norm_topk_prob=True; the published router never renormalises")
        super().__post_init__(**kwargs)
        self.is_causal = False  # transformers then builds a bidirectional mask

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> LLaDAMoEConfig:
        """Read a ``config.json``; the hub's says ``model_type: llada`` with ``num_experts``."""
        published = {"norm_topk_prob": config_dict.get("norm_topk_prob") or False, "model_type": cls.model_type}
        return super().from_dict(config_dict | published, **kwargs)


class LLaDAMoEModelLM(Qwen3MoeForCausalLM):
    """LLaDA-MoE with its vocabulary head; logits (B, L, V) of the token at each position."""

    config_class = LLaDAMoEConfig

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers looks for its decorator in the source of this module; it is in the parent's


def register() -> None:
    """Make the family known to transformers: its config, and how one weight an expert becomes one stacked weight."""
    AutoConfig.register(LLaDAMoEConfig.model_type, LLaDAMoEConfig, exist_ok=True)
    register_checkpoint_conversion_mapping(
        LLaDAMoEConfig.model_type, get_checkpoint_conversion_mapping("qwen2_moe"), overwrite=True
    )


register()
