"""transformers' causal models, attending in both directions.

A configuration with ``is_causal`` off makes transformers build a bidirectional mask, and the saved ``config.json`` keeps
it off; nothing else differs from the causal model.

Source: transformers 5.23, ``masking_utils.create_causal_mask``; weights and names of the causal checkpoints.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)


class A2DLlamaConfig(LlamaConfig):
    """A Llama configuration that attends in both directions."""

    model_type = "a2d-llama"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.is_causal = False


class A2DLlamaLMHeadModel(LlamaForCausalLM):
    """Llama with its vocabulary head; logits (B, L, V)."""

    config_class = A2DLlamaConfig


class A2DQwen2Config(Qwen2Config):
    """A Qwen2 configuration that attends in both directions."""

    model_type = "a2d-qwen2"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.is_causal = False


class A2DQwen2LMHeadModel(Qwen2ForCausalLM):
    """Qwen2 with its vocabulary head; logits (B, L, V)."""

    config_class = A2DQwen2Config


class A2DQwen3Config(Qwen3Config):
    """A Qwen3 configuration that attends in both directions."""

    model_type = "a2d-qwen3"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.is_causal = False


class A2DQwen3LMHeadModel(Qwen3ForCausalLM):
    """Qwen3 with its vocabulary head; logits (B, L, V)."""

    config_class = A2DQwen3Config


for _config in (A2DLlamaConfig, A2DQwen2Config, A2DQwen3Config):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
