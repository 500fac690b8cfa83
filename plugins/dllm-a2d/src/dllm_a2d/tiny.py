"""Small random models and a character tokenizer, for tests, for trying a conversion out, and for the tiny recipes.

The tokenizer lacks a mask token, as those of causal models do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dllm_a2d.architectures import ARCHITECTURES, Architecture
from dllm_core.plugins import import_string

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedConfig

START, END, UNKNOWN = "<|im_start|>", "<|endoftext|>", "<|unk|>"
THINK = ("<think>", "</think>")
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
ROOM = 128  # rows of the embedding: enough for all tokens and the mask
CONTEXT = 64
# The form of Qwen3's own: an empty thought where thinking is switched off, also before the last answer.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{{- message.content + END_OF_TURN + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
# What differs per architecture; windows are small enough to hide something if they worked.
OWN_SIZES: Mapping[str, Mapping[str, object]] = {
    "llama": SIZES,
    "qwen2": SIZES | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": SIZES | {"head_dim": 8},
    "qwen3_moe": SIZES
    | {"head_dim": 8, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1}
    | {"use_sliding_window": True, "sliding_window": 4},
    "gemma": SIZES | {"head_dim": 8},
    "gemma3_text": SIZES | {"head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2},
    "mistral": SIZES | {"head_dim": 8, "sliding_window": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
    "phi3": SIZES | {"sliding_window": 4},
    "olmo2": SIZES,
}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def architecture(source_type: str) -> Architecture:
    """The row of a causal model's ``model_type``."""
    return next(row for row in ARCHITECTURES if row.source_type == source_type)


def causal_config(source_type: str, vocab_size: int = ROOM) -> PreTrainedConfig:
    """A small configuration of the causal model."""
    row = architecture(source_type)
    return import_string(f"transformers:{row.config}")(vocab_size=vocab_size, **SPECIAL, **OWN_SIZES[source_type])


def diffusion_config(source_type: str, vocab_size: int = ROOM) -> PreTrainedConfig:
    """The same of the converted model."""
    row = architecture(source_type)
    made = import_string(f"dllm_a2d.models:A2D{row.name}Config")
    return made(vocab_size=vocab_size, **SPECIAL, **OWN_SIZES[source_type])


def vocabulary(source_type: str = "qwen3") -> dict[str, int]:
    """Token -> id: the special tokens of an architecture without its mask, then the characters."""
    special = dict.fromkeys([END, START, *THINK, *architecture(source_type).eot_tokens, UNKNOWN])
    return {token: number for number, token in enumerate([*special, *CHARACTERS])}


def build_tokenizer(source_type: str = "qwen3") -> PreTrainedTokenizerFast:
    """One token a character. 101 or 102 tokens, as the architecture's turns end."""
    ends = architecture(source_type).eot_tokens
    backend = Tokenizer(models.WordLevel(vocabulary(source_type), unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=[START, *THINK, *ends],
        chat_template=CHAT_TEMPLATE.replace("END_OF_TURN", repr((ends or (END,))[0])),
        clean_up_tokenization_spaces=False,
    )
