"""What the Dream family declares to the core."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dllm_core.models import ModelAdapter

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
    mask_token: ClassVar[str | None] = "<|mask|>"
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
        """The checkpoint's tokenizer, which is Qwen2's; its own class, which a hub would run, is not needed."""
        from transformers import Qwen2Tokenizer

        if not self.has_tokenizer(path):
            return None
        return self.prepare_tokenizer(Qwen2Tokenizer.from_pretrained(path, revision=revision))

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Mask token, and padding with the end of sequence, as the checkpoints were trained."""
        tokenizer = super().prepare_tokenizer(tokenizer)
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer
