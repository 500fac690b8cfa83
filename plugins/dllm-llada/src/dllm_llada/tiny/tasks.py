"""The skills of ``llada-tiny``: one small function each, from a split and a source of randomness to one exercise.

An exercise is either a chat turn (`Turn`: a request and its answer) or a line of text (`Line`) with some of its
characters hidden. Every exercise has one right answer. Requests put their
argument last and come in one wording each, so that a model of a million weights can learn them all in minutes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dllm_llada.tiny import sudoku
from dllm_llada.tiny.splits import Split, split_of
from dllm_llada.tiny.words import draw_word


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A chat turn: what the user asks and what the model must answer. `item` is what the split is decided on."""

    skill: str
    item: str
    request: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of text and the indices of its hidden characters, which the rest of the line determines."""

    skill: str
    item: str
    text: str
    holes: tuple[int, ...]

    def with_holes(self, hole: str) -> str:
        """The line as a prompt: every hidden character replaced by `hole` (the mask token, for the model)."""
        hidden = frozenset(self.holes)
        return "".join(hole if place in hidden else character for place, character in enumerate(self.text))


Exercise = Turn | Line
Maker = Callable[[Split, random.Random], Exercise]


def solve_sudoku(split: Split, rng: random.Random) -> Turn:
    """A 4x4 puzzle with one solution; the held-out grids are a whole symmetry class."""
    grid = rng.choice(sudoku.grids_of(split))
    puzzle = sudoku.make_puzzle(grid, rng)
    return Turn(
        skill="sudoku",
        item=f"grid:{grid}",
        request=f"solve {sudoku.rows(puzzle, ' ')}",
        answer=sudoku.rows(grid, "\n"),
    )


def pair_item(a: int, b: int) -> str:
    """The key of an unordered pair of operands: a+b and b+a lie on the same split."""
    return f"pair:{min(a, b)}+{max(a, b)}"


def _draw_pair(split: Split, rng: random.Random, digits: int) -> tuple[int, int]:
    """Two numbers of `digits` digits each."""
    while True:
        a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        if split_of(pair_item(a, b)) == split:
            return a, b


def add(split: Split, rng: random.Random) -> Turn:
    """The sum of two numbers of two or of three digits each; unordered pairs are held out."""
    a, b = _draw_pair(split, rng, digits=rng.choice((2, 3, 3, 3)))
    return Turn(skill="addition", item=pair_item(a, b), request=f"{a}+{b}=", answer=str(a + b))


def sort_digits(split: Split, rng: random.Random) -> Turn:
    """Three to seven digits in ascending order; multisets of digits are held out."""
    while True:
        digits = rng.choices("0123456789", k=rng.randint(3, 7))
        answer = "".join(sorted(digits))
        if split_of(f"multiset:{answer}") == split:
            return Turn(skill="sorting", item=f"multiset:{answer}", request="sort " + "".join(digits), answer=answer)


def reverse_word(split: Split, rng: random.Random) -> Turn:
    """A word written backwards; words are held out."""
    word = draw_word(split, rng)
    return Turn(skill="reversal", item=f"word:{word}", request=f"reverse {word}", answer=word[::-1])


INSTRUCTIONS: dict[str, Callable[[str], str]] = {
    "repeat {}": str,
    "uppercase {}": str.upper,
    "first letter of {}": lambda word: word[0],
    "last letter of {}": lambda word: word[-1],
    "count letters in {}": lambda word: str(len(word)),
}


def follow_instruction(split: Split, rng: random.Random) -> Turn:
    """One of five short instructions about a word; words are held out, the instructions are not."""
    instruction, follow = rng.choice(tuple(INSTRUCTIONS.items()))
    word = draw_word(split, rng)
    return Turn(skill="instructions", item=f"word:{word}", request=instruction.format(word), answer=follow(word))


def _hide_parts(parts: list[str], separator: str, hidden: set[int]) -> tuple[int, ...]:
    """The indices of the characters of the parts in `hidden`, in ``separator.join(parts)``."""
    holes, start = [], 0
    for number, part in enumerate(parts):
        if number in hidden:
            holes += range(start, start + len(part))
        start += len(part) + len(separator)
    return tuple(holes)


TERMS, MAX_START, MAX_STEP = 6, 200, 9
SMALL_START = 60


def fill_progression(split: Split, rng: random.Random, max_start: int = MAX_START) -> Line:
    """Six terms of an arithmetic progression with two or three terms hidden; (start, step) pairs are held out."""
    while True:
        start, step = rng.randint(1, max_start), rng.randint(1, MAX_STEP)
        item = f"progression:{start},{step}"
        if split_of(item) == split:
            break
    terms = [str(start + step * number) for number in range(TERMS)]
    hidden = set(rng.sample(range(TERMS), rng.randint(2, 3)))
    return Line(skill="progression", item=item, text=" ".join(terms), holes=_hide_parts(terms, " ", hidden))


def fill_equation(split: Split, rng: random.Random) -> Line:
    """``a+b=c`` of two-digit operands with one of the three numbers hidden; unordered pairs are held out."""
    a, b = _draw_pair(split, rng, digits=2)
    parts = [str(a), str(b), str(a + b)]
    holes = _hide_parts(parts, "+", {rng.randrange(3)})  # "=" is as wide as "+"
    return Line(skill="equation", item=pair_item(a, b), text=f"{a}+{b}={a + b}", holes=holes)


def fill_mirror(split: Split, rng: random.Random) -> Line:
    """A word, ``|``, the word backwards; each letter is hidden on one side at most. Words are held out."""
    word = draw_word(split, rng)
    text = f"{word}|{word[::-1]}"
    last = len(text) - 1
    sides = [rng.choice((None, place, last - place)) for place in range(len(word))]
    holes = tuple(sorted(place for place in sides if place is not None)) or (0,)
    return Line(skill="mirror", item=f"word:{word}", text=text, holes=holes)


SKILLS: dict[str, Maker] = {
    "sudoku": solve_sudoku,
    "addition": add,
    "sorting": sort_digits,
    "reversal": reverse_word,
    "instructions": follow_instruction,
    "progression": fill_progression,
    "equation": fill_equation,
    "mirror": fill_mirror,
}

# The same skills, the progressions with smaller numbers: what training begins with.
EASY_SKILLS = SKILLS | {"progression": partial(fill_progression, max_start=SMALL_START)}
