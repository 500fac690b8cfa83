"""What ``dllm plugins check llada`` and pytest run: the core's conformance suite on this plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dllm_core.conformance import AdapterTests, CommitRuleTests, EvalTaskTests, PluginTests, SamplerTests
from dllm_core.conformance.commit_rule import Equivalence
from dllm_llada.configuration import LLaDAConfig
from dllm_llada.llada2 import LLaDA2MoeConfig
from dllm_llada.moe import LLaDAMoEConfig
from dllm_llada.tiny.tokenizer import build_tokenizer, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


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


def role_tokenizer() -> PreTrainedTokenizerBase:
    """Letters and the special tokens of LLaDA-MoE and LLaDA 2.x, with their form of chat."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|role_end|>", "<|mask|>"]
    letters = sorted("<role>HUMANASSISTANT</role>abcdefghijklmnopqrstuvwxyz ")
    vocabulary = {token: number for number, token in enumerate([*special, *dict.fromkeys(letters)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", extra_special_tokens=special)
    fast.chat_template = (
        "{% for message in messages %}<role>{{ 'HUMAN' if message.role == 'user' else 'ASSISTANT' }}</role>"
        "{{ message.content }}<|role_end|>{% endfor %}{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
    )
    return fast


class TestMoEAdapter(AdapterTests):
    component = "llada/llada-moe"

    def tiny_config(self) -> PreTrainedConfig:
        return LLaDAMoEConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            moe_intermediate_size=24,
            num_experts=4,
            num_experts_per_tok=2,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            moe_layer_freq=[0, 1],
            max_position_embeddings=64,
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return role_tokenizer()


class TestLLaDA2Adapter(AdapterTests):
    component = "llada/llada2"

    def tiny_config(self) -> PreTrainedConfig:
        return LLaDA2MoeConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            moe_intermediate_size=24,
            num_experts=8,
            num_experts_per_tok=2,
            n_group=4,
            topk_group=2,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return role_tokenizer()


class TestLLaDA2(SamplerTests):
    component = "llada/llada2"
    bad_options: ClassVar[dict] = {"threshold": [-0.1, 1.5, 90]}
    follows_schedule = False
    follows_steps = False


class TestLLaDA21(SamplerTests):
    component = "llada/llada21"
    bad_options: ClassVar[dict] = {"editing_threshold": [-0.1, 1.5], "max_post_steps": [-1], "threshold": [2]}
    follows_schedule = False
    follows_steps = False
    may_remask = True
    ranks_by_confidence = False


class TestThresholdOrQuota(CommitRuleTests):
    component = "llada/threshold_or_quota"
    bad_options: ClassVar[dict] = {"threshold": [-0.1, 1.5]}
    equivalent_to: ClassVar[tuple] = (Equivalence(options={"threshold": 1.0}, other="core/quota", quota=2),)


class TestTinyTasks(EvalTaskTests):
    component = "llada/llada_tiny"
