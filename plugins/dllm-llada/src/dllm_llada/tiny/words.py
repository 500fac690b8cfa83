"""Invented words: half of them pronounceable, half plain random letters, so that no vocabulary can be learned by heart.

The split of a word is the split of every task that uses it: a held-out word is never seen in any role.
"""

from __future__ import annotations

import random
import string

from dllm_llada.tiny.splits import Split, split_of

VOWELS = "aeiou"
CONSONANTS = "".join(letter for letter in string.ascii_lowercase if letter not in VOWELS)
MIN_LETTERS, MAX_LETTERS = 3, 6


def word_split(word: str) -> Split:
    """The split on which `word` lies, in whatever task it appears."""
    return split_of(f"word:{word}")


def _pronounceable(length: int, rng: random.Random) -> str:
    start = rng.randrange(2)
    return "".join(rng.choice((VOWELS, CONSONANTS)[(start + place) % 2]) for place in range(length))


def draw_word(split: Split, rng: random.Random) -> str:
    """A word of three to six letters that lies on `split`."""
    while True:
        length = rng.randint(MIN_LETTERS, MAX_LETTERS)
        random_letters = "".join(rng.choices(string.ascii_lowercase, k=length))
        word = random_letters if rng.random() < 0.5 else _pronounceable(length, rng)
        if word_split(word) == split:
            return word
