"""A skill that ``llada-tiny`` was not taught, for recipes that fine-tune it within a minute: a word written twice."""

from __future__ import annotations

import random
from collections.abc import Iterator

from dllm_llada.tiny.generate import Example, encode_turn
from dllm_llada.tiny.splits import Split
from dllm_llada.tiny.tasks import Turn
from dllm_llada.tiny.words import draw_word

LONGEST_TAIL = 4  # end-of-text tokens behind an answer


def twice(split: Split, rng: random.Random) -> Turn:
    """``twice abc`` -> ``abcabc``; words are held out."""
    word = draw_word(split, rng)
    return Turn(skill="twice", item=f"word:{word}", request=f"twice {word}", answer=word * 2)


def training_examples(*, split: Split = "train", seed: int = 0, count: int) -> Iterator[Example]:
    """`count` chat turns of the new skill; the same arguments give the same ones."""
    rng = random.Random(f"lesson/{seed}/{split}")
    return (encode_turn(twice(split, rng), rng.randint(0, LONGEST_TAIL)) for _ in range(count))
