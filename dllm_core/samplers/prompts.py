"""From what users give (text, chat messages, token ids) to checked lists of token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import torch
from jinja2 import TemplateError

from dllm_core.errors import PromptError
from dllm_core.models import Denoiser

Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[Message] | torch.Tensor
Prompts = Prompt | Sequence[Prompt]

_FORMS = "a prompt is text, a list of chat messages ({'role': .., 'content': ..}), or a list of token ids"


def as_list(prompts: Prompts) -> list[Prompt]:
    """One prompt or several -> a list of prompts; tensors and arrays as lists.

    Text, a 1-D tensor, a list of ids and a list of messages are one prompt.

    Raises:
        PromptError: neither, or no prompt at all.
    """
    prompts = _plain(prompts)
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise PromptError(f"{_FORMS}, or a list of those; got {prompts!r}")
    if not prompts:
        raise PromptError("no prompts were given; give at least one")
    return [prompts] if isinstance(prompts[0], (Integral, Mapping)) else [_plain(prompt) for prompt in prompts]


def encode(denoiser: Denoiser, prompts: Prompts) -> list[list[int]]:
    """Token ids of each prompt; chat messages through the chat template, with the generation prompt.

    Raises:
        PromptError: a prompt is empty, holds mask tokens or ids outside the vocabulary, or needs a tokenizer or chat
            template that the denoiser lacks.
    """
    rows = [_encode_one(denoiser, prompt, goes_on=True) for prompt in as_list(prompts)]
    for number, row in enumerate(rows):
        if denoiser.mask_token_id in row:
            raise PromptError(
                f"prompt {number} holds the mask token (id {denoiser.mask_token_id}); to fill masks inside a text use "
                "infill (dllm run --infill)"
            )
    return rows


def encode_canvases(denoiser: Denoiser, canvases: Prompts) -> list[list[int]]:
    """Token ids of texts that hold mask tokens, for infilling.

    Raises:
        PromptError: as `encode`, and where a canvas has no mask token to fill.
    """
    rows = [_encode_one(denoiser, canvas, goes_on=False) for canvas in as_list(canvases)]
    for number, row in enumerate(rows):
        if denoiser.mask_token_id not in row:
            name = "id " + str(denoiser.mask_token_id)
            if denoiser.tokenizer is not None:
                name = f"{denoiser.tokenizer.convert_ids_to_tokens(denoiser.mask_token_id)!r}, {name}"
            raise PromptError(f"canvas {number} has no mask token ({name}) to fill; put one where text is missing")
    return rows


def check_lengths(denoiser: Denoiser, lengths: Sequence[int], prompt_lengths: Sequence[int]) -> None:
    """Raise where prompt and completion together do not fit the model's context.

    Raises:
        PromptError: names the row, its lengths and the context.
    """
    context = denoiser.context_length
    for number, (length, prompt) in enumerate(zip(lengths, prompt_lengths, strict=True)):
        if length <= prompt:
            full = context is not None and prompt >= context
            why = f"the model's context is {context}; shorten the prompt" if full else "shorten it or raise max_length"
            raise PromptError(f"prompt {number} has {prompt} tokens, which leaves nothing to generate; {why}")
        if context is None or length <= context:
            continue
        if prompt == 0:
            raise PromptError(f"canvas {number} has {length} tokens, the model's context is {context}; shorten it")
        raise PromptError(
            f"prompt {number} has {prompt} tokens and {length - prompt} more are asked for, the model's context is "
            f"{context}; shorten the prompt or lower max_new_tokens (or max_length)"
        )


def _plain(value: object) -> object:
    """Tensors and arrays as nested lists, anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _encode_one(denoiser: Denoiser, prompt: Prompt, *, goes_on: bool) -> list[int]:
    if isinstance(prompt, str):
        ids = _encode_text(denoiser, prompt, goes_on=goes_on)
    elif not isinstance(prompt, Sequence):
        raise PromptError(f"{_FORMS}; got {prompt!r}")
    elif prompt and isinstance(prompt[0], Mapping):
        ids = _encode_chat(denoiser, prompt)
    else:
        ids = prompt
    if not ids:
        raise PromptError("the prompt is empty; give text or, to generate freely, the beginning-of-sequence token")
    for token in ids:
        if not isinstance(token, Integral) or not 0 <= token < denoiser.vocab_size:
            raise PromptError(f"{token!r} is not a token id; ids run from 0 to {denoiser.vocab_size - 1}")
    return [int(token) for token in ids]


def _encode_text(denoiser: Denoiser, text: str, *, goes_on: bool) -> list[int]:
    """With the special tokens that the tokenizer puts in front; those behind it only where the text ends there."""
    if not text.strip():
        raise PromptError("the prompt is empty; give some text")
    if denoiser.tokenizer is None:
        raise PromptError("this model was loaded without a tokenizer, so prompts are token ids; give ids")
    framed = denoiser.tokenizer(text)["input_ids"]
    if not goes_on:
        return framed
    bare = denoiser.tokenizer(text, add_special_tokens=False)["input_ids"]  # an end in the text itself stays
    behind = next((n for n in range(len(framed) - len(bare) + 1) if framed[: len(framed) - n][-len(bare) :] == bare), 0)
    return framed[: len(framed) - behind]


def _encode_chat(denoiser: Denoiser, messages: Sequence[Message]) -> list[int]:
    tokenizer = denoiser.tokenizer
    if tokenizer is None or tokenizer.chat_template is None:
        raise PromptError("this model has no chat template; give the prompt as text (dllm run --raw)")
    for message in messages:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise PromptError(f"a chat message has a 'role' and a 'content', both text; got {message!r}")
    if not any(message["content"].strip() for message in messages):
        raise PromptError("the prompt is empty; give some text")
    try:
        text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise PromptError(f"the model's chat template refuses these messages ({error}); change their roles") from error
    # The template writes the special tokens itself.
    return tokenizer(text, add_special_tokens=False)["input_ids"]
