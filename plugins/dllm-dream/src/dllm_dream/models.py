"""Dream: transformers' Qwen2, whose maths and weight names it has, attending in both directions.

Source: Dream-org/Dream-v0-Base-7B, ``modeling_dream.py`` and ``config.json``; arXiv 2508.15487.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, Qwen2Config, Qwen2ForCausalLM


class DreamConfig(Qwen2Config):
    """Architecture of a Dream model; the fields are those of Qwen2."""

    model_type = "Dream"

    use_cache: bool = False
    mask_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.is_causal = False  # transformers then builds a bidirectional mask
        # The published code reads use_sliding_window and never uses it; transformers would hide what is farther away.
        self.layer_types = ["full_attention"] * self.num_hidden_layers
        self.use_sliding_window, self.sliding_window = False, None


class DreamModel(Qwen2ForCausalLM):
    """Dream with its vocabulary head; row i of the logits (B, L, V) scores token i + 1."""

    config_class = DreamConfig


AutoConfig.register(DreamConfig.model_type, DreamConfig, exist_ok=True)
