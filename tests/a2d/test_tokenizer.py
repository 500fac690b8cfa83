"""The ids that published checkpoints rely on, on tokenizers laid out as the published ones, and their chats.

Figures: Qwen2.5-0.5B and Qwen3-0.6B (151643 base tokens, then those below in this order), GPT-2 (50257 tokens),
Llama 3 (128000 base tokens and 256 reserved ones).
"""

from __future__ import annotations

import pytest
from dllm_a2d import adapter as adapters
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

QWEN25 = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
QWEN3 = (*QWEN25, "<tool_response>", "</tool_response>", "<think>", "</think>")
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{n}|>" for n in range(7)), "<|eot_id|>")
QWEN3_END = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
CHAT = [{"role": "user", "content": "hello"}]
THOUGHT = "<think>\n\n</think>\n\n"


def laid_out(base: int, special: tuple[str, ...], total: int, eos: str, template: str | None = None):
    """A tokenizer of `total` tokens with the special ones behind the base, as the published one has them."""
    backend = Tokenizer(models.WordLevel({f"t{number}": number for number in range(base)}, unk_token="t0"))
    filler = [f"<|filler_{number}|>" for number in range(total - base - len(special))]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (*special, *filler)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, chat_template=template)


def with_words(tokenizer: PreTrainedTokenizerFast, words: dict[str, int]) -> PreTrainedTokenizerFast:
    """The tokenizer with a few words of the published vocabulary at their ids."""
    backend = tokenizer.backend_tokenizer
    base = backend.get_vocab(with_added_tokens=False)
    named = {number: text for text, number in words.items()}
    backend.model = models.WordLevel({named.get(number, text): number for text, number in base.items()}, unk_token="t0")
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+|\w+"), "isolated")
    return tokenizer


def prepared(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return getattr(adapters, f"A2D{name}Adapter")().prepare_tokenizer(tokenizer)


@pytest.mark.parametrize(
    ("name", "tokenizer", "mask", "eos", "turn_end"),
    [
        ("Qwen2", (151643, QWEN25, 151665, "<|endoftext|>"), 151665, 151643, ("<|im_end|>", 151645)),
        ("Qwen3", (151643, QWEN3, 151669, "<|im_end|>"), 151669, 151645, ("<|im_end|>", 151645)),
        ("GPT2", (50256, ("<|endoftext|>",), 50257, "<|endoftext|>"), 50257, 50256, None),
        ("Llama", (128000, LLAMA3, 128256, "<|end_of_text|>"), 128256, 128001, ("<|eot_id|>", 128009)),
    ],
)
def test_mask_goes_behind_the_last_token(name, tokenizer, mask, eos, turn_end):
    tokenizer = prepared(name, laid_out(*tokenizer))
    assert tokenizer.mask_token_id == mask
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == eos
    assert len(tokenizer) == mask + 1
    assert tokenizer("<|mask|><|mask|>", add_special_tokens=False)["input_ids"] == [mask, mask]
    assert tokenizer.decode([mask, eos, mask], skip_special_tokens=True) == ""
    if turn_end is not None:
        text, number = turn_end
        assert tokenizer.convert_tokens_to_ids(text) == number
        assert text in getattr(adapters, f"A2D{name}Adapter").eot_tokens
    assert prepared(name, tokenizer).mask_token_id == mask


def test_a_tokenizer_that_has_the_mask_keeps_it():
    """As those of published trained checkpoints do."""
    special = (*QWEN3, "<|mask|>", "<|later|>")
    tokenizer = prepared("Qwen3", laid_out(151643, special, 151671, "<|im_end|>"))
    assert (tokenizer.mask_token_id, len(tokenizer)) == (151669, 151671)


def test_thinking_is_off_unless_asked_for():
    plain = laid_out(10, QWEN3, 36, "<|im_end|>", QWEN3_END)
    asked = {"tokenize": False, "add_generation_prompt": True}
    head = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert plain.apply_chat_template(CHAT, **asked) == head
    off = prepared("Qwen3", plain)
    assert off.apply_chat_template(CHAT, **asked) == head + THOUGHT
    assert off.apply_chat_template(CHAT, enable_thinking=False, **asked) == head + THOUGHT
    assert off.apply_chat_template(CHAT, enable_thinking=True, **asked) == head
    once = off.chat_template
    assert prepared("Qwen3", off).chat_template == once


def test_a_chat_has_the_published_ids():
    """As the published tokenizer of Qwen3 gives them for this chat, with its thought left empty."""
    words = {"user": 872, "\n": 198, "assistant": 77091, "\n\n": 271}
    tokenizer = prepared("Qwen3", with_words(laid_out(151643, QWEN3, 151669, "<|im_end|>", QWEN3_END), words))
    chat = [{"role": "user", "content": "user"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids == [151644, 872, 198, 872, 151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]


def test_templates_by_name_are_all_taught():
    plain = {"default": QWEN3_END, "tool_use": QWEN3_END, "plain": "{{ messages[0].content }}"}
    taught = adapters.without_thinking(plain)
    assert [text.startswith(adapters.WITHOUT_THINKING) for text in taught.values()] == [True, True, False]


def test_a_template_that_knows_no_thinking_stays_as_it_is():
    plain = laid_out(10, QWEN25, 32, "<|endoftext|>", "{{ messages[0].content }}")
    assert prepared("Qwen2", plain).chat_template == "{{ messages[0].content }}"
    assert prepared("GPT2", laid_out(10, QWEN25, 32, "<|endoftext|>")).chat_template is None
