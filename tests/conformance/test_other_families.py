"""Families of transformers that no plugin here serves pass the checks of adapters: the suite knows no family."""

from __future__ import annotations

from transformers import LlamaConfig, ModernBertConfig

from dllm_core.conformance import AdapterTests
from dllm_core.models import ModelAdapter

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


class ModernBert(ModelAdapter):
    model_types = ("modernbert",)
    config_class = "transformers:ModernBertConfig"
    model_class = "transformers:ModernBertForMaskedLM"


class Llama(ModelAdapter):
    """Autoregressive: shifted, and blind to what comes later."""

    model_types = ("llama",)
    config_class = "transformers:LlamaConfig"
    model_class = "transformers:LlamaForCausalLM"
    logits_are_shifted = True
    supports_kv_cache = True
    supports_block_causal = True


class TestModernBert(AdapterTests):
    component = "tests.conformance.test_other_families:ModernBert"

    def tiny_config(self) -> ModernBertConfig:
        special = {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
        return ModernBertConfig(**SIZES, **special, num_hidden_layers=3)


class TestLlama(AdapterTests):
    component = "tests.conformance.test_other_families:Llama"
    attends_both_ways = False

    def tiny_config(self) -> LlamaConfig:
        return LlamaConfig(**SIZES, num_hidden_layers=2, num_key_value_heads=2)
