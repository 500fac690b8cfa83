"""What the converted families declare to the core."""

from __future__ import annotations

from typing import ClassVar

from dllm_core.models import ModelAdapter


class A2DAdapter(ModelAdapter):
    """What all converted models have in common."""

    supports_kv_cache: ClassVar[bool] = True
    supports_block_causal: ClassVar[bool] = True
    mask_token: ClassVar[str | None] = "<|mask|>"
    lora_targets: ClassVar[tuple[str, ...] | str] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


class A2DLlamaAdapter(A2DAdapter):
    """Llama turned diffusion."""

    model_types: ClassVar[tuple[str, ...]] = ("a2d-llama",)
    config_class: ClassVar[str] = "dllm_a2d.models:A2DLlamaConfig"
    model_class: ClassVar[str] = "dllm_a2d.models:A2DLlamaLMHeadModel"
    eot_tokens: ClassVar[tuple[str, ...]] = ("<|eot_id|>",)


class A2DQwen2Adapter(A2DAdapter):
    """Qwen2 and Qwen2.5 turned diffusion."""

    model_types: ClassVar[tuple[str, ...]] = ("a2d-qwen2",)
    config_class: ClassVar[str] = "dllm_a2d.models:A2DQwen2Config"
    model_class: ClassVar[str] = "dllm_a2d.models:A2DQwen2LMHeadModel"
    eot_tokens: ClassVar[tuple[str, ...]] = ("<|im_end|>",)


class A2DQwen3Adapter(A2DAdapter):
    """Qwen3 turned diffusion."""

    model_types: ClassVar[tuple[str, ...]] = ("a2d-qwen3",)
    config_class: ClassVar[str] = "dllm_a2d.models:A2DQwen3Config"
    model_class: ClassVar[str] = "dllm_a2d.models:A2DQwen3LMHeadModel"
    eot_tokens: ClassVar[tuple[str, ...]] = ("<|im_end|>",)
