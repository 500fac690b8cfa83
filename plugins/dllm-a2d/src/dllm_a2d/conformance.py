"""What ``dllm plugins check a2d`` and pytest run: the core's conformance suite on each architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dllm_a2d.tiny import build_tokenizer, diffusion_config
from dllm_core.conformance import AdapterTests, PluginTests

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


class TestPlugin(PluginTests):
    plugin = "a2d"


class Converted:
    """What the checks of one architecture run on."""

    source_type: ClassVar[str]

    def tiny_config(self) -> PreTrainedConfig:
        return diffusion_config(self.source_type)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return build_tokenizer(self.source_type)


class TestLlama(Converted, AdapterTests):
    component = "a2d/a2d-llama"
    source_type = "llama"


class TestQwen2(Converted, AdapterTests):
    component = "a2d/a2d-qwen2"
    source_type = "qwen2"


class TestQwen3(Converted, AdapterTests):
    component = "a2d/a2d-qwen3"
    source_type = "qwen3"


class TestQwen3Moe(Converted, AdapterTests):
    component = "a2d/a2d-qwen3-moe"
    source_type = "qwen3_moe"


class TestGemma(Converted, AdapterTests):
    component = "a2d/a2d-gemma"
    source_type = "gemma"


class TestGemma3(Converted, AdapterTests):
    component = "a2d/a2d-gemma3"
    source_type = "gemma3_text"


class TestMistral(Converted, AdapterTests):
    component = "a2d/a2d-mistral"
    source_type = "mistral"


class TestGPT2(Converted, AdapterTests):
    component = "a2d/a2d-gpt2"
    source_type = "gpt2"


class TestPhi3(Converted, AdapterTests):
    component = "a2d/a2d-phi3"
    source_type = "phi3"


class TestOlmo2(Converted, AdapterTests):
    component = "a2d/a2d-olmo2"
    source_type = "olmo2"
