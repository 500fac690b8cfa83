"""From a canvas of token ids to styled text: pure functions, used by everything that shows a generation."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from operator import itemgetter
from typing import TextIO

from rich.cells import chop_cells
from rich.text import Text

# A character is at most four bytes, so no more than four byte tokens belong together; the rest is for odd tokenizers.
LONGEST_GROUP = 8
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Age(IntEnum):
    """How long ago a position was written, counted in drawn frames; the youngest of a group is what is shown."""

    DELETED = -7  # just now; struck through, then gone
    LEAVING = -6  # the frame before it is gone
    INSERTED = -5
    REPLACED = -4  # just now, in place of another token
    REVOKED = -3  # just now masked again
    UNSURE = -2  # just now, with a confidence below a half
    LIKELY = -1  # ... below nine tenths
    FRESH = 0  # ... above that, or of unknown confidence
    RECENT = 1
    SETTLED = 2
    GIVEN = 3


# No two of the new ones differ by colour alone, and the shades of confidence differ in lightness, so that they can be
# told apart with any colour vision, and with NO_COLOR as well.
STYLES: dict[int, str] = {
    Age.DELETED: "strike red",
    Age.LEAVING: "dim strike red",
    Age.INSERTED: "underline black on bright_green",
    Age.REPLACED: "bold underline black on bright_yellow",
    Age.REVOKED: "bold magenta",
    Age.UNSURE: "italic white on blue",
    Age.LIKELY: "bold italic black on cyan",
    Age.FRESH: "bold black on bright_cyan",
    Age.RECENT: "cyan",
    Age.SETTLED: "",
    Age.GIVEN: "dim",
}
LEGEND = {
    Age.FRESH: "sure",
    Age.LIKELY: "likely",
    Age.UNSURE: "unsure",
    Age.REVOKED: "masked again",
    Age.INSERTED: "inserted",
    Age.REPLACED: "substituted",
    Age.DELETED: "deleted",
}
MASK_STYLE = "bright_black"
SPECIAL_STYLE = "dim"


@dataclass(frozen=True)
class Glyphs:
    """The marks that a terminal can show.

    Args:
        mask: a position that is still masked.
        partial: a part of a character, whose other bytes are still masked.
        special: an end of sequence, an end of turn, or another token that the finished text leaves out.
        boundary: stands in front of each block but the first.
    """

    mask: str
    partial: str
    special: str
    boundary: str
    prompt: str
    separator: str
    ellipsis: str
    bar_done: str
    bar_left: str


UNICODE = Glyphs(
    mask="░",
    partial="▒",
    special="·",
    boundary="┊",
    prompt="❯",
    separator=" · ",
    ellipsis="…",
    bar_done="━",
    bar_left="─",
)
ASCII = Glyphs(
    mask="_",
    partial="?",
    special=".",
    boundary="|",
    prompt=">",
    separator=" | ",
    ellipsis="...",
    bar_done="=",
    bar_left="-",
)


def glyphs_for(encoding: str) -> Glyphs:
    """The Unicode marks where the terminal's encoding has them all, else the ASCII ones."""
    marks = "".join(vars(UNICODE).values())
    return ASCII if shown_as(marks, encoding) != marks else UNICODE


def shown_as(text: str, encoding: str) -> str:
    """The text as a terminal can show it: no control characters but line breaks, nothing its encoding lacks."""
    visible = text if text.isprintable() else "".join(_visible(character) for character in text)
    return visible.encode(encoding, errors="replace").decode(encoding)


def harmless(text: str, stream: TextIO) -> str:
    """The text as it is to be written to a stream: as it is, but to a terminal without what would steer that.

    A model may write escape sequences, which could hide text or change the title of the window.
    """
    if not stream.isatty():
        return text
    return "\t".join(shown_as(part, stream.encoding) for part in text.split("\t"))


def _visible(character: str) -> str:
    """Escape sequences and direction marks that a model writes must not reach the terminal."""
    if character in "\n\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}":
        return character
    if character == "\t":
        return "    "
    category = unicodedata.category(character)
    return {"Cc": REPLACEMENT, "Cf": "", "Cs": REPLACEMENT, "Zl": " ", "Zp": " "}.get(category, character)


@dataclass(frozen=True)
class Piece:
    """The text of the tokens `start` to `stop` (exclusive) of a run: several where they are one character together."""

    start: int
    stop: int
    text: str


class TokenText:
    """The text of each token in its place, remembered so that a frame decodes only what is new.

    Joined, the pieces of a run of tokens are exactly what the tokenizer decodes the run to.

    Args:
        decode: token ids -> text, special tokens included.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._known: dict[tuple[int, ...], str] = {}

    def pieces(self, ids: Sequence[int]) -> list[Piece]:
        """The pieces of one run of tokens, in order, without gaps."""
        pieces = list(self._walk(ids))
        whole = self._decode(list(ids))
        if "".join(piece.text for piece in pieces) == whole:
            return pieces
        return [Piece(0, len(ids), whole)]  # the tokenizer looks further back than one token: give up colouring each

    def _walk(self, ids: Sequence[int]) -> Iterator[Piece]:
        start = 0
        while start < len(ids):
            before = tuple(ids[max(start - 1, 0) : start])
            stop, text = self._shortest_whole(before, ids, start)
            yield Piece(start, stop, text)
            start = stop

    def _shortest_whole(self, before: tuple[int, ...], ids: Sequence[int], start: int) -> tuple[int, str]:
        """The fewest tokens from `start` on that decode to whole characters, and their text."""
        first = None
        for stop in range(start + 1, min(start + LONGEST_GROUP, len(ids)) + 1):
            text = self.text_after(before, tuple(ids[start:stop]))
            first = text if first is None else first
            if not text.endswith(REPLACEMENT):
                return stop, text
        return start + 1, first or ""

    def text_after(self, before: tuple[int, ...], group: tuple[int, ...]) -> str:
        """What tokens add to a text: with the one before them, as a leading space may depend on that."""
        context = self._text(before) if before else ""
        together = self._text(before + group)
        return together[len(context) :] if together.startswith(context) else self._text(group)

    def alone(self, token: int) -> str:
        """The text of one token without its neighbours; of a part of a character, a replacement mark."""
        return self._text((token,))

    def _text(self, ids: tuple[int, ...]) -> str:
        if ids not in self._known:
            self._known[ids] = self._decode(list(ids))
        return self._known[ids]


def canvas_text(
    ids: Sequence[int],
    ages: Sequence[int],
    tokens: TokenText,
    *,
    mask_id: int,
    special_ids: Collection[int],
    boundaries: Collection[int] = (),
    glyphs: Glyphs = UNICODE,
    encoding: str = "utf-8",
) -> Text:
    """One row of a canvas as styled text.

    Args:
        ids: the token ids to show, in order; those that were just deleted among them.
        ages: of the same length, when each was committed; of a masked position only `Age.REVOKED` matters.
        tokens: gives the text of the tokens.
        mask_id: shown as a dim block.
        special_ids: those that the finished text leaves out, above all the end of sequence; shown as a dim dot.
        boundaries: positions, those that were deleted not counted, in front of which a block begins.
    """
    parts = _canvas_parts(ids, ages, tokens, mask_id, frozenset(special_ids), boundaries, glyphs)
    text = Text()
    for style, run in itertools.groupby(parts, key=itemgetter(1)):  # each piece of its own would be written for itself
        text.append(shown_as("".join(shown for shown, _ in run), encoding), style)
    return text


def _canvas_parts(
    ids: Sequence[int],
    ages: Sequence[int],
    tokens: TokenText,
    mask_id: int,
    special_ids: Collection[int],
    boundaries: Collection[int],
    glyphs: Glyphs,
) -> Iterator[tuple[str, str]]:
    """The text of a row and its style, piece by piece."""
    live = [place for place, age in enumerate(ages) if age > Age.LEAVING]
    deleted = _deleted_before(live, ids, ages)

    def one(token: int) -> str:
        return glyphs.mask if token == mask_id else glyphs.special if token in special_ids else tokens.alone(token)

    written = 0
    parts = _parts(
        [ids[place] for place in live], [ages[place] for place in live], tokens, mask_id, special_ids, glyphs
    )
    for length, shown, style in [*parts, (1, "", "")]:
        for place in range(written, written + length):
            if place in boundaries:
                yield glyphs.boundary, SPECIAL_STYLE
            for token, age in deleted.get(place, ()):
                yield one(token).replace(REPLACEMENT, glyphs.partial), STYLES[age]
        yield shown, style
        written += length


def _deleted_before(live: Sequence[int], ids: Sequence[int], ages: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
    """The deleted tokens and their ages in front of each that is left, by its number among those."""
    if len(live) == len(ids):
        return {}
    edges = [-1, *live, len(ids)]
    gaps = {n: range(before + 1, after) for n, (before, after) in enumerate(itertools.pairwise(edges))}
    return {n: [(ids[place], ages[place]) for place in gap] for n, gap in gaps.items() if gap}


def _parts(
    ids: Sequence[int],
    ages: Sequence[int],
    tokens: TokenText,
    mask_id: int,
    special_ids: Collection[int],
    glyphs: Glyphs,
) -> Iterator[tuple[int, str, str]]:
    """How many tokens, their text and its style, in order."""
    for start, stop in runs(ids, mask_id, special_ids):
        if ids[start] == mask_id:
            yield from ((1, glyphs.mask, STYLES[age] if age == Age.REVOKED else MASK_STYLE) for age in ages[start:stop])
        elif ids[start] in special_ids:
            styles = (STYLES[age] if age < Age.SETTLED else SPECIAL_STYLE for age in ages[start:stop])
            yield from ((1, glyphs.special, style) for style in styles)
        else:
            for piece in tokens.pieces(ids[start:stop]):
                youngest = min(ages[start + piece.start : start + piece.stop])
                yield piece.stop - piece.start, piece.text.replace(REPLACEMENT, glyphs.partial), STYLES[youngest]


def runs(ids: Sequence[int], mask_id: int, special_ids: Collection[int]) -> Iterator[tuple[int, int]]:
    """The stretches of masked, of special and of ordinary positions, as (start, stop)."""

    def kind(token: int) -> int:
        return 0 if token == mask_id else 1 if token in special_ids else 2

    start = 0
    for position in range(1, len(ids) + 1):
        if position == len(ids) or kind(ids[position]) != kind(ids[start]):
            yield start, position
            start = position


def fold(text: Text, width: int) -> list[Text]:
    """The lines of a text, broken where a terminal breaks them: at its edge, not between words.

    So nothing jumps when a word appears among masks, or when the finished text takes the place of the view.
    """
    lines: list[Text] = []
    for line in text.split("\n", allow_blank=True):
        *parts, _ = itertools.accumulate(map(len, chop_cells(line.plain, width)), initial=0)
        lines += line.divide(parts[1:])
    return lines


def window(lines: Sequence[Text], height: int) -> list[Text]:
    """At most `height` of the lines: those around the first masked position, where the work is.

    Where nothing is masked any more, the last ones.
    """
    if len(lines) <= height:
        return list(lines)
    busy = next((n for n, line in enumerate(lines) if _is_masked(line)), len(lines))
    first = min(max(busy - height // 2, 0), len(lines) - height)
    return list(lines[first : first + height])


def _is_masked(line: Text) -> bool:
    return any(span.style in (MASK_STYLE, STYLES[Age.REVOKED]) for span in line.spans)


def legend_text(ages: Collection[int], width: int) -> Text:
    """What the marks mean, each word in the style that it explains, on one line of at most `width` cells.

    Args:
        ages: those that were seen.
    """
    text = Text(no_wrap=True, overflow="crop")
    for age, word in LEGEND.items():
        if age in ages and text.cell_len + len(word) + 1 <= width:
            text.append(" " * bool(text.plain)).append(word, STYLES[age])
    return text


def progress_text(
    *, done: float, parts: Sequence[str], width: int, glyphs: Glyphs = UNICODE, bar_width: int = 24
) -> Text:
    """A bar and what is to be said beside it, on one line of at most `width` cells.

    Args:
        done: the share that is finished, 0 to 1.
        parts: the most important first; as many are shown as fit.
    """
    bar_width = min(bar_width, max(width // 4, 4))
    filled = round(bar_width * min(max(done, 0.0), 1.0))
    text = Text(no_wrap=True, overflow="crop")
    text.append(glyphs.bar_done * filled, "cyan")
    text.append(glyphs.bar_left * (bar_width - filled), "bright_black")
    gap = "  "
    for part in parts:
        if text.cell_len + len(gap) + len(part) > width:
            break
        text.append(gap + part, "dim")
        gap = glyphs.separator
    return text
