"""What the tiny recipes learn: digits, an equals sign, and the same digits in order. ``52143=12345``"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator

from dllm_a2d.tiny import END, vocabulary

Example = dict[str, list[int]]
GIVEN = -100  # label of a token that is never hidden
SHORTEST, LONGEST = 3, 6  # digits
HELD_OUT = 10  # every tenth string of digits


def examples(*, split: str, seed: int, count: int) -> Iterator[Example]:
    """`count` exercises with their answers; those of ``held_out`` are never among those of ``train``.

    Answers are filled with ends of sequence to one length, which are learned too: canvases may be longer than answers.
    """
    ids = vocabulary()
    for digits in _questions(split, seed, count):
        prompt = [ids[character] for character in f"{digits}="]
        answer = [ids[character] for character in sorted(digits)]
        answer += [ids[END]] * (LONGEST + 2 - len(answer))
        yield {"input_ids": prompt + answer, "labels": [GIVEN] * len(prompt) + answer}


def _questions(split: str, seed: int, count: int) -> Iterator[str]:
    chance = random.Random(f"{seed} {split}")
    while count > 0:
        digits = "".join(chance.choices("0123456789", k=chance.randint(SHORTEST, LONGEST)))
        if (zlib.crc32(digits.encode()) % HELD_OUT == 0) == (split == "held_out"):
            count -= 1
            yield digits
