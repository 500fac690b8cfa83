"""A character tokenizer with ModernBERT's special tokens, and what the tiny recipe learns: a chat that sorts digits.

``[Question] 3142 [/Question] [Answer] 1234 [/Answer]``
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dllm_bert.adapter import CHAT_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = dict[str, list[int]]
SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
GIVEN = -100  # label of a token that is never hidden
SHORTEST, LONGEST = 2, 5  # digits
HELD_OUT = 10  # every tenth set of digits


def build_tokenizer() -> PreTrainedTokenizerBase:
    """One token a character, 101 in all; no end of sequence, as ModernBERT's has none."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def examples(*, split: str, seed: int, count: int) -> Iterator[Example]:
    """`count` chats; what is asked in those of ``held_out`` is never asked in ``train``, in whatever order.

    Answers are filled up to one length with padding, which is learned: canvases may be longer than answers.
    """
    tokenizer = build_tokenizer()
    pad = tokenizer.pad_token_id
    for digits in _questions(split, seed, count):
        chat = [{"role": "user", "content": digits}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        answered = [*chat, {"role": "assistant", "content": "".join(sorted(digits))}]
        whole = tokenizer.apply_chat_template(answered, tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"] + [pad] * (LONGEST - len(digits) + 1)
        yield {"input_ids": ids, "labels": [GIVEN] * len(prompt) + ids[len(prompt) :]}


def _questions(split: str, seed: int, count: int) -> Iterator[str]:
    chance = random.Random(f"{seed} {split}")
    while count > 0:
        digits = "".join(chance.choices("0123456789", k=chance.randint(SHORTEST, LONGEST)))
        if (zlib.crc32("".join(sorted(digits)).encode()) % HELD_OUT == 0) == (split == "held_out"):
            count -= 1
            yield digits
