"""What the Dream family declares to the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from dllm_core.models import ModelAdapter
from dllm_dream.tokens import ADDED, BASE_VOCABULARY, BEGIN, CHATML, MASK, PLAIN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class DreamAdapter(ModelAdapter):
    """Dream-v0-7B base and instruct.

    Source: Dream-org/Dream-v0-Instruct-7B; arXiv 2508.15487.
    """

    model_types: ClassVar[tuple[str, ...]] = ("Dream",)
    config_class: ClassVar[str] = "dllm_dream.models:DreamConfig"
    model_class: ClassVar[str] = "dllm_dream.models:DreamModel"
    logits_are_shifted: ClassVar[bool] = True
    supports_kv_cache: ClassVar[bool] = True
    supports_block_causal: ClassVar[bool] = True
    mask_token: ClassVar[str | None] = MASK
    eot_tokens: ClassVar[tuple[str, ...]] = ("<|im_end|>",)
    lora_targets: ClassVar[tuple[str, ...] | str] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )

    def load_tokenizer(self, path: str, *, revision: str | None = None) -> PreTrainedTokenizerBase | None:
        """The checkpoint's tokenizer; its own class, which a hub would run, is Qwen2's and not needed."""
        from transformers import AutoTokenizer, Qwen2Tokenizer
        from transformers.models.auto.tokenization_auto import get_tokenizer_config

        if not self.has_tokenizer(path):
            return None
        config = get_tokenizer_config(path, revision=revision)
        is_published = "auto_map" in config or config.get("tokenizer_class") in (None, "DreamTokenizer")
        reader = Qwen2Tokenizer if is_published else AutoTokenizer  # what was trained with another one keeps it
        return self.prepare_tokenizer(reader.from_pretrained(path, revision=revision))

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Mask token, ends and chat template, as the checkpoints were trained; a second call changes nothing.

        A tokenizer without the mask token, such as Qwen2.5's or one made of vocabulary and merges alone, gets it: with
        Qwen2's vocabulary every token where the published checkpoints have it, else behind the last id. Whether the
        embedding has a row for it is checked when the model is there.
        """
        if MASK not in tokenizer.get_vocab():
            add_missing(tokenizer, ADDED if tokenizer.vocab_size == BASE_VOCABULARY else (MASK,))
        tokenizer = super().prepare_tokenizer(tokenizer)
        if tokenizer.bos_token is None and BEGIN in tokenizer.get_vocab():
            tokenizer.bos_token = BEGIN
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.chat_template is None:
            tokenizer.chat_template = CHATML
        return tokenizer


def add_missing(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Add the tokens that a tokenizer lacks, in order, behind its last id."""
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    tokenizer.add_tokens(
        [AddedToken(text, special=text not in PLAIN, normalized=False) for text in texts if text not in known]
    )
