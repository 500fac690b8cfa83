"""The live view of an edit: the text with what was put in, exchanged and taken out of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from rich.text import Text

from dllm_core.display.frames import Frames
from dllm_core.display.live import FRAMES_PER_SECOND
from dllm_core.display.text import STYLES as LIVE
from dllm_core.display.text import Age, fold, glyphs_for, progress_text, shown_as

if TYPE_CHECKING:
    from rich.console import Console

# Those of the live view, which differ by form as well as by colour.
STYLES = {"insert": LIVE[Age.INSERTED], "substitute": LIVE[Age.REPLACED], "delete": LIVE[Age.DELETED]}
HEAT = ((0.75, "bold white on red"), (0.5, "black on bright_red"), (0.25, "black on yellow"), (0.1, "underline"))


class Span(Protocol):
    """What `heat_text` reads of a token's place."""

    start: int
    stop: int


class Editing(Protocol):
    """What the view reads of a session."""

    @property
    def marked(self) -> Sequence[tuple[str, str]]:
        """The text in parts, each with the kind of edit that it came by, or empty."""

    @property
    def made(self) -> int:
        """Edits so far."""


class EditView:
    """Draws a text while it is edited; erased when the context ends, so that only the result stays."""

    def __init__(self, console: Console, session: Editing) -> None:
        self._session = session
        self._console = console
        self._frames = Frames(console)
        self._next_frame = 0.0
        self._steps = 0

    def __enter__(self) -> EditView:
        self._began = time.perf_counter()
        self._frames.__enter__()
        self._frames.draw(self.lines())
        return self

    def __exit__(self, *error: object) -> None:
        self._frames.__exit__(*error)

    def show(self) -> None:
        """Take note of a step, and draw it where a frame is due."""
        self._steps += 1
        if time.perf_counter() >= self._next_frame:  # the first step is always drawn: short edits have few
            self._frames.draw(self.lines())
            self._next_frame = time.perf_counter() + 1 / FRAMES_PER_SECOND

    def lines(self) -> list[Text]:
        """The lines of the frame now, none longer than the terminal is wide."""
        encoding, size = self._console.encoding, self._console.size
        text = marked_text(self._session.marked, encoding)
        elapsed = time.perf_counter() - self._began
        parts = [f"{self._session.made} edits", f"step {self._steps}", f"{elapsed:.1f} s"]
        said = progress_text(done=0.0, parts=parts, width=size.width, glyphs=glyphs_for(encoding), bar_width=0)
        lines = [*_around_edits(fold(text, size.width), max(size.height - 3, 1)), Text(), said]
        for line in lines:
            line.truncate(size.width, overflow="crop")
        return lines


def marked_text(parts: Sequence[tuple[str, str]], encoding: str) -> Text:
    """Parts of a text, each in the style of the edit that it came by."""
    text = Text()
    for part, kind in parts:
        text.append(shown_as(part.replace("\r", ""), encoding), STYLES.get(kind, ""))
    return text


def heat_text(text: str, spans: Sequence[Span], rates: Sequence[float], encoding: str) -> Text:
    """A text whose tokens are marked by how likely they are to be edited.

    Args:
        spans: the characters of each token.
        rates: of each token.
    """
    text = text.replace("\r", " ")  # of the same length, so that every token stays in its place
    shown = Text(shown_as(text, encoding)) if len(shown_as(text, encoding)) == len(text) else Text(text)
    for span, rate in zip(spans, rates, strict=True):
        style = next((style for lowest, style in HEAT if rate >= lowest), None)
        if style is not None:
            shown.stylize(style, span.start, max(span.stop, span.start + 1))
    return shown


def _around_edits(lines: Sequence[Text], height: int) -> Iterator[Text]:
    """At most `height` lines, around the first that an edit has touched."""
    first = next((place for place, line in enumerate(lines) if line.spans), 0)
    start = max(0, min(first - height // 3, len(lines) - height))
    yield from lines[start : start + height]
