"""What the LLaDA family declares to the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from dllm_core.models.adapter import ModelAdapter
from dllm_llada.chat_template import CHAT_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURN_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# LLaDA-8B-Base ends here; LLaDA-8B-Instruct goes on with the turn tokens, ids 126346 to 126348, and the embedding of
# both has rows for them.
BASE_TOKENIZER_LENGTH = 126346


class LLaDAAdapter(ModelAdapter):
    """LLaDA-8B base and instruct, LLaDA-1.5, and models trained from scratch with their architecture.

    Source: GSAI-ML/LLaDA-8B-Instruct; arXiv 2502.09992.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llada",)
    config_class: ClassVar[str] = "dllm_llada.configuration:LLaDAConfig"
    model_class: ClassVar[str] = "dllm_llada.modeling:LLaDAModelLM"
    supports_kv_cache: ClassVar[bool] = True
    supports_block_causal: ClassVar[bool] = True
    mask_token: ClassVar[str | None] = "<|mdm_mask|>"
    eot_tokens: ClassVar[tuple[str, ...]] = ("<|eot_id|>",)
    chat_template: ClassVar[str | None] = CHAT_TEMPLATE
    lora_targets: ClassVar[tuple[str, ...] | str] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "attn_out",
        "ff_proj",
        "up_proj",
        "ff_out",
    )

    def for_checkpoint(self, config: Mapping[str, object]) -> ModelAdapter:
        """LLaDA-MoE calls itself ``llada`` on the hub; its experts give it away."""
        if "num_experts" not in config:
            return self
        from dllm_llada.moe_adapter import LLaDAMoEAdapter

        return LLaDAMoEAdapter()

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Mask token, padding, turn tokens and chat template; a second call changes nothing.

        No id is added, with one exception: the tokenizer of LLaDA-8B-Base gets the turn tokens at the very ids that
        the instruct checkpoint has them at. A tokenizer without turn tokens keeps its own template: spelled out in
        pieces, they would be a prompt that no checkpoint was trained on.
        """
        vocabulary = tokenizer.get_vocab()
        if self.mask_token in vocabulary:
            tokenizer.add_special_tokens({"mask_token": self.mask_token})
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token  # LLaDA pads with, and is trained on, the end of sequence
        known = [token for token in TURN_TOKENS if token in vocabulary]
        if len(known) == len(TURN_TOKENS) or (not known and len(tokenizer) == BASE_TOKENIZER_LENGTH):
            tokenizer.add_special_tokens(
                {"extra_special_tokens": list(TURN_TOKENS)}, replace_extra_special_tokens=False
            )
            tokenizer.chat_template = self.chat_template
        return tokenizer
