"""A character tokenizer with Dream's special tokens, and what the tiny recipe learns: digits and the same reversed.

``3142=2413``
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dllm_dream.tokens import BEGIN, CHATML, MASK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = dict[str, list[int]]
END, START, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
GIVEN = -100  # label of a token that is never hidden
SHORTEST, LONGEST = 3, 6  # digits
HELD_OUT = 10  # every tenth string of digits


def vocabulary() -> dict[str, int]:
    """Token -> id: 5 special tokens, then the characters; 101 in all."""
    return {token: number for number, token in enumerate([END, START, END_OF_TURN, BEGIN, MASK, *CHARACTERS])}


def build_tokenizer() -> PreTrainedTokenizerBase:
    """One token a character."""
    backend = Tokenizer(models.WordLevel(vocabulary(), unk_token=END))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=END,
        extra_special_tokens=[START, END_OF_TURN, BEGIN, MASK],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def examples(*, split: str, seed: int, count: int) -> Iterator[Example]:
    """`count` exercises with their answers; those of ``held_out`` are never among those of ``train``.

    An answer ends with an end of sequence; shorter examples of a batch are filled by the collator.
    """
    ids = vocabulary()
    for digits in _questions(split, seed, count):
        prompt = [ids[character] for character in f"{digits}="]
        answer = [ids[character] for character in reversed(digits)] + [ids[END]]
        yield {"input_ids": prompt + answer, "labels": [GIVEN] * len(prompt) + answer}


def _questions(split: str, seed: int, count: int) -> Iterator[str]:
    chance = random.Random(f"{seed} {split}")
    while count > 0:
        digits = "".join(chance.choices("0123456789", k=chance.randint(SHORTEST, LONGEST)))
        if (zlib.crc32(digits.encode()) % HELD_OUT == 0) == (split == "held_out"):
            count -= 1
            yield digits
