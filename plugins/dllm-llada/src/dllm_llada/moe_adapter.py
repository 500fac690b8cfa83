"""The families with experts: LLaDA-MoE, and LLaDA 2.0 and 2.1. They share tokenizer and turn tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dllm_core.models import ModelAdapter
from dllm_core.plugins import import_string

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


class ExpertsAdapter(ModelAdapter):
    """What LLaDA-MoE and LLaDA 2.x have in common. Their chat template is the checkpoint's own."""

    supports_kv_cache: ClassVar[bool] = True
    supports_block_causal: ClassVar[bool] = True
    mask_token: ClassVar[str | None] = "<|mask|>"
    eot_tokens: ClassVar[tuple[str, ...]] = ("<|role_end|>",)
    lora_targets: ClassVar[tuple[str, ...] | str] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def load_config(self, path: str, *, revision: str | None = None) -> PreTrainedConfig:
        """Read ``config.json``, whichever of the family's names it gives itself."""
        config_class = import_string(self.config_class)
        fields, _ = config_class.get_config_dict(path, revision=revision)
        return config_class.from_dict(fields)

    def load_tokenizer(self, path: str, *, revision: str | None = None) -> PreTrainedTokenizerBase | None:
        """The checkpoint's tokenizer. Its config is given along: the hub's may name a model type of another family."""
        from transformers import AutoTokenizer

        if not self.has_tokenizer(path):
            return None
        config = self.load_config(path, revision=revision)
        return self.prepare_tokenizer(AutoTokenizer.from_pretrained(path, revision=revision, config=config))

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Mask token, and padding with the end of sequence, as the checkpoints were trained."""
        tokenizer = super().prepare_tokenizer(tokenizer)
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer


class LLaDAMoEAdapter(ExpertsAdapter):
    """LLaDA-MoE-7B-A1B base and instruct.

    The hub's config says ``model_type: llada`` and has ``num_experts``; `dllm_llada.adapter.LLaDAAdapter` hands such
    checkpoints over.

    Source: inclusionAI/LLaDA-MoE-7B-A1B-Instruct.
    """

    model_types: ClassVar[tuple[str, ...]] = ("lladamoe",)
    config_class: ClassVar[str] = "dllm_llada.moe:LLaDAMoEConfig"
    model_class: ClassVar[str] = "dllm_llada.moe:LLaDAMoEModelLM"


class LLaDA2Adapter(ExpertsAdapter):
    """LLaDA 2.0 and 2.1 (mini, flash).

    Source: inclusionAI/LLaDA2.0-mini, inclusionAI/LLaDA2.1-mini; arXiv 2512.15745.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llada2_moe", "llada21_moe")
    config_class: ClassVar[str] = "dllm_llada.llada2:LLaDA2MoeConfig"
    model_class: ClassVar[str] = "dllm_llada.llada2:LLaDA2MoeModelLM"
