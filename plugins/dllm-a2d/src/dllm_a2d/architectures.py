"""The architectures that can be converted: one row each, and a new one is one more row. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

LLAMA_LIKE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Architecture:
    """A causal language model of transformers.

    Args:
        name: in class names: ``Qwen3`` for `A2DQwen3Config`.
        title: for listings.
        source_type: ``model_type`` of the causal checkpoint.
        config, model: names of the configuration and of the causal model in transformers.
        eot_tokens: texts of the tokens that end a turn of chat, besides the end of sequence.
        lora_targets: names of the linear layers.
    """

    name: str
    title: str
    source_type: str
    config: str
    model: str
    eot_tokens: tuple[str, ...] = ()
    lora_targets: tuple[str, ...] = LLAMA_LIKE

    @property
    def model_type(self) -> str:
        """``model_type`` of the converted checkpoint; for Llama, Qwen2 and Qwen3 the published one."""
        return f"a2d-{self.source_type}"

    @property
    def adapter_name(self) -> str:
        """Name of the component: ``a2d-qwen3-moe``."""
        return f"a2d-{self.source_type.removesuffix('_text').replace('_', '-')}"


CHATML_END = ("<|im_end|>",)
ARCHITECTURES = (
    Architecture("Llama", "Llama", "llama", "LlamaConfig", "LlamaForCausalLM", ("<|eot_id|>",)),
    Architecture("Qwen2", "Qwen2 and Qwen2.5", "qwen2", "Qwen2Config", "Qwen2ForCausalLM", CHATML_END),
    Architecture("Qwen3", "Qwen3", "qwen3", "Qwen3Config", "Qwen3ForCausalLM", CHATML_END),
    Architecture(
        "Qwen3Moe",
        "Qwen3 with experts",
        "qwen3_moe",
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        CHATML_END,
        ("q_proj", "k_proj", "v_proj", "o_proj"),  # the experts are stacked in one tensor
    ),
    Architecture("Gemma", "Gemma", "gemma", "GemmaConfig", "GemmaForCausalLM", ("<end_of_turn>",)),
    Architecture("Gemma3", "Gemma 3", "gemma3_text", "Gemma3TextConfig", "Gemma3ForCausalLM", ("<end_of_turn>",)),
    Architecture("Mistral", "Mistral", "mistral", "MistralConfig", "MistralForCausalLM"),
    Architecture("GPT2", "GPT-2", "gpt2", "GPT2Config", "GPT2LMHeadModel", (), ("c_attn", "c_proj", "c_fc")),
    Architecture(
        "Phi3",
        "Phi-3",
        "phi3",
        "Phi3Config",
        "Phi3ForCausalLM",
        ("<|end|>",),
        ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    ),
    Architecture("Olmo2", "OLMo 2", "olmo2", "Olmo2Config", "Olmo2ForCausalLM"),
)
