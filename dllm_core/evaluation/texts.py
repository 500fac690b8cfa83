"""From the texts of evaluation requests to token ids, and from completions to what is judged."""

from __future__ import annotations

from collections.abc import Sequence

from dllm_core.errors import PromptError
from dllm_core.models import Denoiser


def encode_prompt(denoiser: Denoiser, text: str, *, add_bos: bool | None = None) -> list[int]:
    """Token ids of a prompt, with the special tokens that the tokenizer puts in front of a text, and none behind.

    What a tokenizer puts behind (``[SEP]``) ends a text, and the completion goes on with it. A text that already begins
    with these tokens, as a chat template writes them, gets no second ones.

    Args:
        add_bos: put the beginning-of-sequence token in front, or nothing; None: what the tokenizer does.

    Raises:
        PromptError: ``add_bos`` for a tokenizer that has no such token.
    """
    tokenizer = denoiser.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    lead = _lead(denoiser, text, ids, add_bos)
    return ids if ids[: len(lead)] == lead else lead + ids


def encode_pair(
    denoiser: Denoiser, context: str, continuation: str, *, add_bos: bool | None = None
) -> tuple[list[int], list[int]]:
    """Token ids of a context and its continuation, as they are when tokenized as one text.

    Blanks at the end of the context belong to the continuation, as in lm-eval and the official LLaDA code.
    """
    blanks = len(context) - len(context.rstrip())
    if blanks and context.strip():
        context, continuation = context[:-blanks], context[-blanks:] + continuation
    whole = encode_prompt(denoiser, context + continuation, add_bos=add_bos)
    prefix = encode_prompt(denoiser, context, add_bos=add_bos)
    return prefix, whole[len(prefix) :]


def fit_prefix(denoiser: Denoiser, prefix: list[int], new_tokens: int) -> list[int]:
    """The end of a prefix that leaves room for `new_tokens` in the model's context.

    Raises:
        PromptError: `new_tokens` alone leave no room for any prompt.
    """
    context = denoiser.context_length
    if context is None or len(prefix) + new_tokens <= context:
        return prefix
    if new_tokens > context:
        raise PromptError(f"{new_tokens} tokens are asked for, the model's context is {context}; ask for fewer")
    return prefix[len(prefix) + new_tokens - context :]


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """The text in front of the first stop string that occurs in it."""
    found = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(found)] if found else text


def _lead(denoiser: Denoiser, text: str, ids: list[int], add_bos: bool | None) -> list[int]:
    tokenizer = denoiser.tokenizer
    if add_bos:
        if tokenizer.bos_token_id is None:
            raise PromptError("add_bos is set, and the tokenizer has no beginning-of-sequence token; leave it out")
        return [tokenizer.bos_token_id]
    if add_bos is not None:
        return []
    full = tokenizer(text)["input_ids"]
    if not ids:  # nothing tells what stands in front from what stands behind
        return [token for token in full if token in (tokenizer.bos_token_id, tokenizer.cls_token_id)]
    starts = [place for place in range(len(full)) if full[place : place + len(ids)] == ids]
    return full[: starts[0]] if starts else []
