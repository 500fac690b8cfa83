"""The chat template of LLaDA-8B-Instruct, with its whitespace put right.

Beginning of sequence once, then per message: header, blank line, trimmed content, end of turn. The generation prompt is
the assistant's header and a blank line. Source: the Llama 3 form that GSAI-ML/LLaDA-8B-Instruct was tuned on.
"""

from __future__ import annotations

CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}"
    "{{- message['content'] | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}"
    "{%- endif -%}"
)
