"""LLaDA 2.0 and 2.1: transformers' GLM-4-MoE classes attending in both directions, published names mapped onto theirs.

The two architectures compute the same: per-head norms of query and key, rotary embedding over the first half of each
head, sigmoid routing limited to the best groups of experts, corrected by a bias in the choice and not in the weights,
and a shared expert beside the chosen ones. What differs is how the weights are named, and that the published file
holds query, key and value in one matrix. Experts are computed by grouped matrix products.

Source: inclusionAI/LLaDA2.0-mini, ``modeling_llada2_moe.py`` and ``config.json``; arXiv 2512.15745.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming
from transformers.models.glm4_moe.configuration_glm4_moe import Glm4MoeConfig
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeForCausalLM

from dllm_core.errors import ModelLoadError
from dllm_llada.fields import take_computed

# What published code can be told to compute and the shared classes cannot. A field that is absent has the first value.
COMPUTED: dict[str, tuple[object, ...]] = {
    "use_bias": (False,),
    "norm_head": (False, None),
    "use_sliding_window": (False, None),
    "score_function": ("sigmoid", None),
    "moe_router_enable_expert_bias": (True, None),
    "embedding_dropout": (0.0, None),
    "output_dropout": (0.0, None),
}
IGNORED = ("sliding_window", "max_window_layers")  # without meaning while use_sliding_window is off


class LLaDA2MoeConfig(Glm4MoeConfig):
    """Architecture of a LLaDA 2.x model; the defaults are those of LLaDA2.0-mini.

    Published names are read as well: ``num_experts``, ``num_shared_experts``, ``use_qkv_bias``.

    Raises:
        ModelLoadError: a field holds what this model does not compute.
    """

    model_type = "llada2_moe"
    attribute_map: ClassVar[dict[str, str]] = {
        "num_local_experts": "n_routed_experts",
        "num_mtp_layers": "num_nextn_predict_layers",
        "num_experts": "n_routed_experts",
        "num_shared_experts": "n_shared_experts",
        "use_qkv_bias": "attention_bias",
    }

    vocab_size: int = 157184
    hidden_size: int = 2048
    intermediate_size: int = 5120
    num_hidden_layers: int = 20
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int = 128
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    use_cache: bool = False
    moe_intermediate_size: int = 512
    num_experts_per_tok: int = 8
    n_routed_experts: int = 256
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    use_qk_norm: bool = True
    num_mtp_layers: int = 0
    mask_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        take_computed("LLaDA2", kwargs, COMPUTED)
        for name in IGNORED:
            kwargs.pop(name, None)
        kwargs.setdefault("rope_theta", 600000.0)
        self.norm_topk_prob = self.num_experts_per_tok > 1  # the published router leaves a single weight as it is
        super().__post_init__(**kwargs)
        if not self.n_shared_experts:
            raise ModelLoadError("LLaDA2 config has num_shared_experts=0; this model computes at least one")
        self.is_causal = False  # transformers then builds a bidirectional mask

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> LLaDA2MoeConfig:
        """Read a ``config.json``; LLaDA 2.1 may call itself ``llada21_moe``."""
        return super().from_dict({**config_dict, "model_type": cls.model_type}, **kwargs)


class LLaDA2MoeModelLM(Glm4MoeForCausalLM):
    """LLaDA 2.x with its vocabulary head; logits (B, L, V) of the token at each position."""

    config_class = LLaDA2MoeConfig

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers looks for its decorator in the source of this module; it is in the parent's


def register() -> None:
    """Make the family known to transformers: its config, and how published weights become those of the classes."""
    AutoConfig.register(LLaDA2MoeConfig.model_type, LLaDA2MoeConfig, exist_ok=True)
    register_checkpoint_conversion_mapping(
        LLaDA2MoeConfig.model_type,
        [
            *get_checkpoint_conversion_mapping("qwen2_moe"),
            WeightRenaming(r"^model\.word_embeddings\.", "model.embed_tokens."),
            WeightRenaming(r"\.attention\.", ".self_attn."),
            WeightRenaming(r"\.self_attn\.dense\.", ".self_attn.o_proj."),
            WeightRenaming(r"\.self_attn\.query_layernorm\.", ".self_attn.q_norm."),
            WeightRenaming(r"\.self_attn\.key_layernorm\.", ".self_attn.k_norm."),
            WeightRenaming(r"\.mlp\.gate\.expert_bias", ".mlp.gate.e_score_correction_bias"),
            WeightConverter(
                source_patterns="query_key_value.weight",
                target_patterns=["q_proj.weight", "k_proj.weight", "v_proj.weight"],
                operations=[Split(dim=0)],
            ),
        ],
        overwrite=True,
    )


register()
