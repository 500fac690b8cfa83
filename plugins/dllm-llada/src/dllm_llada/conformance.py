"""What ``dllm plugins check llada`` and pytest run: the core's conformance suite on this plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm_core.conformance import AdapterTests, PluginTests
from dllm_llada.configuration import LLaDAConfig
from dllm_llada.tiny.tokenizer import build_tokenizer, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TestPlugin(PluginTests):
    plugin = "llada"


class TestAdapter(AdapterTests):
    component = "llada/llada"
    checkpoint = "llada-tiny"
    texts = ("194 197 200 203 206 209", "28+55=83", "esjp|pjse")

    def tiny_config(self) -> LLaDAConfig:
        return LLaDAConfig(
            vocab_size=len(vocabulary()),
            d_model=32,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            mlp_hidden_size=48,
            max_sequence_length=64,
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return build_tokenizer()
