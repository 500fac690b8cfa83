"""What ``dllm plugins check bert`` and pytest run: the core's conformance suite on this plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import BertConfig, ModernBertConfig, RobertaConfig

from dllm_core.conformance import AdapterTests, PluginTests

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ENDS = {"bos_token_id": 3, "eos_token_id": 3, "cls_token_id": 1, "sep_token_id": 2}


def letters_tokenizer() -> PreTrainedTokenizerBase:
    """Letters and the special tokens of ModernBERT, which has no end of sequence."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted({*"abcdefghijklmnopqrstuvwxyz[/]QASY\n "})
    tokens = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *letters]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]", sep_token="[SEP]"
    )


class TestPlugin(PluginTests):
    plugin = "bert"


class TestBert(AdapterTests):
    component = "bert/bert"

    def tiny_config(self) -> PreTrainedConfig:
        return BertConfig(**SIZES)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return letters_tokenizer()


class TestRoberta(AdapterTests):
    component = "bert/roberta"

    def tiny_config(self) -> PreTrainedConfig:
        return RobertaConfig(**SIZES, pad_token_id=3)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return letters_tokenizer()


class TestModernBert(AdapterTests):
    component = "bert/modernbert"

    def tiny_config(self) -> PreTrainedConfig:
        return ModernBertConfig(**SIZES, local_attention=8, pad_token_id=3, **ENDS)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return letters_tokenizer()
