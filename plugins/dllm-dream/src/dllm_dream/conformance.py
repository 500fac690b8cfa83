"""What ``dllm plugins check dream`` and pytest run: the core's conformance suite on this plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm_core.conformance import AdapterTests, PluginTests, SamplerTests
from dllm_dream.models import DreamConfig
from dllm_dream.tiny import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TestPlugin(PluginTests):
    plugin = "dream"


class TestAdapter(AdapterTests):
    component = "dream/dream"

    def tiny_config(self) -> DreamConfig:
        return DreamConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return build_tokenizer()


class TestEntropy(SamplerTests):
    component = "dream/entropy"


class TestDream(SamplerTests):
    component = "dream/dream"


class TestTopkMargin(SamplerTests):
    component = "dream/topk_margin"


class TestOrigin(SamplerTests):
    component = "dream/origin"
    follows_schedule = False  # how many tokens a step writes is drawn, and a step that draws none is left out
    follows_steps = False
    ranks_by_confidence = False
    deterministic_at_zero = False  # chance decides where it writes, at any temperature
