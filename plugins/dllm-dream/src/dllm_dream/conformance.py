"""What ``dllm plugins check dream`` and pytest run: the core's conformance suite on this plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm_core.conformance import AdapterTests, PluginTests, SamplerTests
from dllm_dream.models import DreamConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")


def letters_tokenizer() -> PreTrainedTokenizerBase:
    """Letters and the special tokens of Dream, with its form of chat."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL, "\n", " ", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", extra_special_tokens=list(SPECIAL)
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


class TestPlugin(PluginTests):
    plugin = "dream"


class TestAdapter(AdapterTests):
    component = "dream/dream"

    def tiny_config(self) -> DreamConfig:
        return DreamConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return letters_tokenizer()


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
