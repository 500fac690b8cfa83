"""The tokens that Dream has beside Qwen2's vocabulary, and its form of chat.

Source: tokenizer_config.json of Dream-org/Dream-v0-Base-7B: those of Qwen2.5, then Dream's own two.
"""

from __future__ import annotations

# Where the published checkpoints have id 151643; all others follow in this order.
BASE_VOCABULARY = 151643
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN = (  # text like any other once it is decoded
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
BEGIN, MASK = "<|beginoftext|>", "<|mask|>"
ADDED = (*SPECIAL, *PLAIN, BEGIN, MASK)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
