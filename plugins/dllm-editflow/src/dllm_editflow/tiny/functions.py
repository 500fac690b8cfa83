"""Small functions whose every character follows from the rest: each error that is planted has one right correction.

What a function does follows from its name; names are told apart by at least three characters, and so are the
parameters, so that a word with one wrong character is still that word. Each text gets at most one error a word or
sign.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

# What is returned, by the name of the function; L and R stand for its parameters.
BODIES = {
    "add": "L + R",
    "subtract": "L - R",
    "multiply": "L * R",
    "divide": "L / R",
    "remainder": "L % R",
    "power": "L ** R",
    "is_less": "L < R",
    "is_greater": "L > R",
    "matches": "L == R",
    "differs": "L != R",
    "smallest": "min(L, R)",
    "biggest": "max(L, R)",
    "double": "L + L",
    "square": "L * L",
    "negative": "-L",
    "length": "len(L)",
    "first_of": "L[0]",
    "last_of": "L[-1]",
}
PARAMETERS = (
    "price",
    "count",
    "left",
    "right",
    "total",
    "speed",
    "width",
    "number",
    "value",
    "index",
    "bottom",
    "size",
)
HELD_OUT = 10  # every tenth combination of function and parameters
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIGNS = "+-*/%<>=!()[]:,._ " + "0123456789"
PIECES = re.compile(r"\w+|\*\*|==|!=|\n    | |.", flags=re.DOTALL)  # words and signs of a text
MOST_ERRORS = 3
MOST_PRACTISED = 6  # in training: more to learn from each text
CLEAN_SHARE = 0.1


class Exercise(NamedTuple):
    """A text with `errors` planted errors, and the right one."""

    draft: str
    text: str
    errors: int


def functions() -> Iterator[tuple[bool, str]]:
    """(held out, text) of every function; which are held out follows from names, not from their order."""
    for name, body in BODIES.items():
        for left in PARAMETERS:
            for right in PARAMETERS if "R" in body else ("",):
                if left != right:
                    key = zlib.crc32(f"{name} {left} {right}".encode())
                    yield key % HELD_OUT == 0, written(name, left, right)


def written(name: str, left: str, right: str) -> str:
    """The text of a function, with a line break at the end."""
    body = re.sub("[LR]", lambda match: left if match[0] == "L" else right, BODIES[name])
    return f"def {name}({', '.join(filter(None, (left, right)))}):\n    return {body}\n"


def exercises(
    split: str,
    seed: int,
    *,
    clean_share: float = CLEAN_SHARE,
    most_errors: int = MOST_ERRORS,
    most_functions: int = 1,
) -> Iterator[Exercise]:
    """Without end: functions of ``train`` or ``held_out`` with errors, or without where a draw says so.

    Args:
        clean_share: of the functions.
        most_errors: of a function.
        most_functions: of a text; as many as a draw says, with an empty line between them.
    """
    chance = random.Random(f"{seed} {split}")
    texts = [text for held_out, text in functions() if held_out == (split == "held_out")]
    while True:
        count = 1 if most_functions == 1 else chance.randint(1, most_functions)
        parts = [_exercise(chance.choice(texts), clean_share, most_errors, chance) for _ in range(count)]
        drafts, right, errors = zip(*parts, strict=True)
        yield Exercise("\n".join(drafts), "\n".join(right), sum(errors))


def _exercise(text: str, clean_share: float, most_errors: int, chance: random.Random) -> Exercise:
    errors = 0 if chance.random() < clean_share else chance.randint(1, most_errors)
    return Exercise(with_errors(text, errors, chance), text, errors)


def with_errors(text: str, errors: int, chance: random.Random) -> str:
    """The text with an error in each of as many words and signs, drawn anew until it differs from the text there."""
    pieces = PIECES.findall(text)
    # The last line break stays, so that a file remains one; a blank has nothing to tell which of two was meant.
    for place in chance.sample(range(len(pieces) - 1), errors):
        before = pieces[place]
        while pieces[place] == before:
            pieces[place] = spoilt(before, chance)
    return "".join(pieces)


def spoilt(piece: str, chance: random.Random) -> str:
    """The piece with one character replaced, left out, or put in."""
    kind = chance.choice(("replace", "leave out", "put in"))
    letters = LETTERS if piece[0].isalpha() else SIGNS
    place = chance.randrange(len(piece))
    if kind == "replace":
        return piece[:place] + chance.choice(letters) + piece[place + 1 :]
    if kind == "leave out":
        return piece[:place] + piece[place + 1 :]
    return piece[:place] + chance.choice(letters) + piece[place:]
