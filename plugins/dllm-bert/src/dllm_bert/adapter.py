"""What BERT, RoBERTa and ModernBERT declare to the core."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dllm_core.models import ModelAdapter

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# The tags are text, not tokens of their own. Source: dllm-hub/ModernBERT-large-chat-v0.1.
CHAT_TEMPLATE = (
    "{% if messages[0].role == 'system' %}[SYS]\n{{ messages[0].content | trim }}\n[/SYS]\n\n"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{% set tag = 'Question' if message.role == 'user' else 'Answer' %}"
    "[{{ tag }}]\n{{ message.content | trim }}\n[/{{ tag }}]\n\n{% endfor %}"
    "{% if add_generation_prompt %}[Answer]\n{% endif %}"
)
END_OF_ANSWER = "[/Answer]"


class BertAdapter(ModelAdapter):
    """BERT with its masked language modelling head.

    Texts have no ``[CLS]`` and ``[SEP]``: the checkpoints are tuned on text as it is, and a ``[SEP]`` behind a prompt
    would stand where its answer begins.

    Source: google-bert/bert-base-uncased; transformers' ``BertForMaskedLM``.
    """

    model_types: ClassVar[tuple[str, ...]] = ("bert",)
    config_class: ClassVar[str] = "transformers:BertConfig"
    model_class: ClassVar[str] = "dllm_bert.models:ShardableBert"
    supports_block_causal: ClassVar[bool] = True
    eot_texts: ClassVar[tuple[str, ...]] = (END_OF_ANSWER,)
    chat_template: ClassVar[str | None] = CHAT_TEMPLATE
    lora_targets: ClassVar[tuple[str, ...] | str] = ("query", "key", "value", "dense")

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """The chat template, and the padding token as end and beginning of text where the tokenizer has none."""
        tokenizer = super().prepare_tokenizer(tokenizer)
        if tokenizer.eos_token is None:
            tokenizer.eos_token = tokenizer.pad_token
        if tokenizer.bos_token is None:
            tokenizer.bos_token = tokenizer.pad_token
        return tokenizer


class RobertaAdapter(BertAdapter):
    """RoBERTa with its masked language modelling head.

    Source: FacebookAI/roberta-base; transformers' ``RobertaForMaskedLM``.
    """

    model_types: ClassVar[tuple[str, ...]] = ("roberta",)
    config_class: ClassVar[str] = "transformers:RobertaConfig"
    model_class: ClassVar[str] = "dllm_bert.models:PositionedRoberta"

    def context_length(self, config: PreTrainedConfig) -> int | None:
        """The rows of the position table that tokens can have: 512 of 514."""
        from dllm_bert.models import first_position

        return config.max_position_embeddings - first_position(config.pad_token_id)


class ModernBertAdapter(BertAdapter):
    """ModernBERT with its masked language modelling head.

    Source: answerdotai/ModernBERT-large, dllm-hub/ModernBERT-large-chat-v0.1; transformers' ``ModernBertForMaskedLM``.
    """

    model_types: ClassVar[tuple[str, ...]] = ("modernbert",)
    config_class: ClassVar[str] = "transformers:ModernBertConfig"
    model_class: ClassVar[str] = "dllm_bert.models:PositionedModernBert"
    lora_targets: ClassVar[tuple[str, ...] | str] = ("Wqkv", "Wo", "Wi")
