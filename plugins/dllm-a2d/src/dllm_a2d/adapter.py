"""What the converted families declare to the core: `A2DQwen3Adapter` and one more class a row of `ARCHITECTURES`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dllm_a2d.architectures import ARCHITECTURES, Architecture
from dllm_core.models import ModelAdapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTERS = {f"A2D{row.name}Adapter": row for row in ARCHITECTURES}
# Templates that know of thinking think unless they are told not to; converted models are trained without.
WITHOUT_THINKING = "{%- set enable_thinking = enable_thinking if enable_thinking is defined else false %}"


class A2DAdapter(ModelAdapter):
    """What all converted models have in common. Whether logits are shifted stands in the checkpoint's config.json."""

    architecture: ClassVar[Architecture]
    supports_kv_cache: ClassVar[bool] = True
    supports_block_causal: ClassVar[bool] = True
    mask_token: ClassVar[str | None] = "<|mask|>"

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Mask token, padding, and a chat template that does not think unless asked to; a second call changes nothing.

        A tokenizer without the mask token gets it behind its last id, where the published checkpoints have it; whether
        the embedding has a row for it is checked when the model is there.
        """
        if tokenizer.mask_token != self.mask_token:
            tokenizer.add_special_tokens({"mask_token": self.mask_token})
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.chat_template = without_thinking(tokenizer.chat_template)
        return tokenizer


def without_thinking(template: str | dict[str, str] | None) -> str | dict[str, str] | None:
    """A chat template, or several by name, whose ``enable_thinking`` is false where the caller says nothing."""
    if isinstance(template, dict):
        return {name: without_thinking(text) for name, text in template.items()}
    if template is None or "enable_thinking" not in template or template.startswith(WITHOUT_THINKING):
        return template
    return WITHOUT_THINKING + template


def __getattr__(name: str) -> type[A2DAdapter]:
    if name not in ADAPTERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    row = ADAPTERS[name]
    body = {
        "__module__": __name__,
        "__doc__": f"{row.title} turned diffusion.",
        "architecture": row,
        "model_types": (row.model_type,),
        "config_class": f"dllm_a2d.models:A2D{row.name}Config",
        "model_class": f"dllm_a2d.models:A2D{row.name}LMHeadModel",
        "eot_tokens": row.eot_tokens,
        "lora_targets": row.lora_targets,
    }
    return globals().setdefault(name, type(name, (A2DAdapter,), body))


def __dir__() -> list[str]:
    return sorted({*globals(), *ADAPTERS})
