"""From exercises to training examples: token ids and labels, in an order that wastes no padding.

An example is ``{"input_ids": [...], "labels": [...]}``; a label of -100 marks a token that is given and never masked.
Answers end with the end of the turn and then a tail of end-of-text tokens of random length, which are trained too, as
LLaDA does (arXiv:2502.09992, section 2.3): this is how the model learns to fill a canvas longer than its answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, repeat

from dllm_llada.tiny.splits import Split
from dllm_llada.tiny.tasks import EASY_SKILLS, SKILLS, Exercise, Line, Maker, Turn
from dllm_llada.tiny.tokenizer import END_OF_TEXT, END_OF_TURN, HEADERS, START_OF_TEXT, vocabulary

Example = dict[str, list[int]]
ID = vocabulary()
_, USER, ASSISTANT = HEADERS
GIVEN = -100


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the training: how often each skill is practised, and by which exercises."""

    weights: dict[str, float]
    makers: Mapping[str, Maker]


# First all skills alike, then, once letters can be copied and reversed, mostly arithmetic, which takes longest.
WARM_UP = Stage(
    weights={
        "sudoku": 0.14,
        "addition": 0.22,
        "sorting": 0.12,
        "reversal": 0.10,
        "instructions": 0.15,
        "progression": 0.13,
        "equation": 0.09,
        "mirror": 0.05,
    },
    makers=EASY_SKILLS,
)
MAIN = Stage(
    weights={
        "sudoku": 0.12,
        "addition": 0.32,
        "sorting": 0.12,
        "reversal": 0.04,
        "instructions": 0.08,
        "progression": 0.16,
        "equation": 0.12,
        "mirror": 0.04,
    },
    makers=SKILLS,
)
# (probability, longest) of the tails, in tokens: most are short, which is cheap, and few as long as a default canvas.
TAILS = ((0.60, 4), (0.25, 24), (0.13, 64), (0.02, 128))
SORTED_TOGETHER = 50  # batches
OPEN_LINES = 0.25  # of the lines, the share on which any character may be masked, not only the chosen holes


def exercises(
    split: Split, seed: int, skills: tuple[str, ...] = tuple(SKILLS), *, warm_up: int = 0
) -> Iterator[Exercise]:
    """An endless stream of exercises of `skills` from one split, the first `warm_up` of them from the first stage.

    The same arguments give the same stream.
    """
    rng = random.Random(f"{seed}/{split}")
    for stage, length in ((WARM_UP, repeat(None, warm_up)), (MAIN, repeat(None))):
        weights = [stage.weights[skill] for skill in skills]
        for _ in length:
            (skill,) = rng.choices(skills, weights)
            yield stage.makers[skill](split, rng)


def _ids(text: str) -> list[int]:
    return [ID[character] for character in text]


def _draw_tail(rng: random.Random) -> int:
    (longest,) = rng.choices([longest for _, longest in TAILS], [probability for probability, _ in TAILS])
    return rng.randint(0, longest)


def encode_turn(turn: Turn, tail: int) -> Example:
    """A chat turn with `tail` end-of-text tokens after it; the answer, its end and the tail are trained."""
    given = [ID[START_OF_TEXT], ID[USER], *_ids(turn.request), ID[END_OF_TURN], ID[ASSISTANT]]
    trained = [*_ids(turn.answer), ID[END_OF_TURN], *[ID[END_OF_TEXT]] * tail]
    return {"input_ids": given + trained, "labels": [GIVEN] * len(given) + trained}


def encode_line(line: Line, tail: int, *, with_start: bool, everywhere: bool) -> Example:
    """A line, with or without the start token; its holes (or `everywhere`, all its characters) and tail are trained."""
    start = [ID[START_OF_TEXT]] if with_start else []
    ids, holes = _ids(line.text), frozenset(line.holes)
    labels = [token if everywhere or place in holes else GIVEN for place, token in enumerate(ids)]
    end = [ID[END_OF_TEXT]] * tail
    return {"input_ids": start + ids + end, "labels": [GIVEN] * len(start) + labels + end}


def encode(exercise: Exercise, rng: random.Random) -> Example:
    """The training example of an exercise, with a random tail and, for a line, a random frame."""
    if isinstance(exercise, Turn):
        return encode_turn(exercise, _draw_tail(rng))
    tail = _draw_tail(rng) if rng.random() < 0.5 else 0
    return encode_line(exercise, tail, with_start=rng.random() < 0.5, everywhere=rng.random() < OPEN_LINES)


def training_examples(
    *,
    split: Split = "train",
    seed: int = 0,
    count: int,
    batch_size: int = 1,
    skills: tuple[str, ...] = tuple(SKILLS),
    warm_up: int = 0,
) -> Iterator[Example]:
    """`count` examples, so arranged that every `batch_size` neighbours have like lengths and need little padding.

    The first `warm_up` of them practise the first stage. Read them in order, without shuffling: the batches themselves
    come in random order.
    """
    order = random.Random(f"order/{seed}")
    stream = (encode(exercise, order) for exercise in exercises(split, seed, tuple(skills), warm_up=warm_up))
    while count > 0:
        pool = sorted(islice(stream, min(count, SORTED_TOGETHER * batch_size)), key=lambda one: len(one["input_ids"]))
        batches = [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
        order.shuffle(batches)
        for batch in batches:
            yield from batch
        count -= len(pool)
