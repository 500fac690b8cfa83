"""A text and its tokens, each tied to the characters that it stands for.

What a tokenizer gives back when it decodes is not always what it read: blanks go, letters change their form. So a token
that no edit has touched is written as the characters that it was made of.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dllm_core.errors import OptionError, PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PAIR = "\r\n"
LONE_LINE_FEED = re.compile(r"(?<!\r)\n")


class Span(NamedTuple):
    """Characters from `start` to before `stop`."""

    start: int
    stop: int


@dataclass(frozen=True)
class Draft:
    """A text as tokens.

    Args:
        text: as it is, line ends included.
        ids: its tokens.
        spans: the characters of each token. Those of the tokens of one character are the same.
    """

    text: str
    ids: list[int]
    spans: list[Span]

    def lead(self, place: int) -> Span:
        """The characters in front of a token that no token stands for, such as a blank that is left out."""
        start = self.spans[place - 1].stop if place else 0
        return Span(start, max(start, self.spans[place].start))

    @property
    def tail(self) -> str:
        """The characters behind the last token that no token stands for."""
        return self.text[self.spans[-1].stop if self.spans else 0 :]

    def part(self, first: int, last: int) -> tuple[Draft, int]:
        """The tokens from `first` to before `last`, and where their text begins; what stands around is not part."""
        start = self.spans[first].start if first else 0
        stop = self.spans[last - 1].stop if last < len(self.spans) else len(self.text)
        spans = [Span(each.start - start, each.stop - start) for each in self.spans[first:last]]
        return Draft(self.text[start:stop], self.ids[first:last], spans), start


def has_pairs(text: str) -> bool:
    """Whether all of its lines end with carriage return and line feed."""
    return PAIR in text and not LONE_LINE_FEED.search(text)


def shown_to_models(text: str) -> str:
    """The text with line feeds alone where its lines all end with pairs: what models know, and what editors show."""
    return text.replace(PAIR, "\n") if has_pairs(text) else text


def tokenized(text: str, tokenizer: PreTrainedTokenizerBase) -> Draft:
    """The tokens of a text and where they stand. A pair at the end of a line is read as a line feed, and stays a pair.

    Raises:
        PromptError: the tokenizer does not say where.
    """
    if not tokenizer.is_fast:
        raise PromptError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for, so unedited text could not "
            "be kept as it is; save the model with a fast tokenizer (tokenizer.json)"
        )
    shown = shown_to_models(text)
    found = tokenizer(shown, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = [Span(*pair) for pair in found["offset_mapping"]]
    if shown != text:
        places = [0, *itertools.accumulate(1 + (letter == "\n") for letter in shown)]
        spans = [Span(places[start], places[stop]) for start, stop in spans]
    return Draft(text, list(found["input_ids"]), spans)


def line_span(text: str, first: int, last: int, *, flag: str) -> Span:
    """The characters of lines `first` to `last`, both counted from 1 and included, without the last one's line end.

    Args:
        flag: the option that named them, for the error.

    Raises:
        OptionError: there are no such lines.
    """
    starts = line_starts(text)
    if not 1 <= first <= last <= len(starts):
        raise OptionError(
            f"{flag} {first}:{last} are no lines of this file, which has lines 1 to {len(starts)}; give first:last"
        )
    stop = starts[last] if last < len(starts) else len(text)
    return Span(starts[first - 1], stop - len(line_end(text[starts[first - 1] : stop])))


def line_starts(text: str) -> list[int]:
    """Where each line begins; a line break at the end of the text begins none."""
    breaks = [place + 1 for place, letter in enumerate(text) if letter == "\n"]
    return [0, *(place for place in breaks if place < len(text))]


def line_end(text: str) -> str:
    """The line break that the text ends with, if any."""
    return "\r\n" if text.endswith("\r\n") else "\n" if text.endswith("\n") else ""


def line_of(starts: Sequence[int], place: int) -> int:
    """The line, from 1, that a character is in."""
    return bisect.bisect_right(starts, place)
