"""Frames on a terminal, each drawn over the last: lines that stay are not written again, and none is blank in between.

So nothing flickers, however slowly a terminal takes what is written to it; rich's own `Live` erases all lines first.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
ERASE_TO_END_OF_LINE, ERASE_BELOW = "\x1b[K", "\x1b[J"


class Frames:
    """Draws lines of text over each other until the context ends, which erases them.

    What is printed meanwhile to the terminal, a library's warning for instance, appears above.

    Args:
        console: where to draw; its standard output and error are watched while something is drawn.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._file = console.file
        self._lines: list[str] = []  # as they were written, with their colour codes
        self._cells: list[int] = []  # of each line
        self._width = 0
        self._streams: tuple[IO[str], IO[str]] | None = None

    def __enter__(self) -> Frames:
        self._file.write(HIDE_CURSOR)
        self._streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (Aside(self, file) if file.isatty() else file for file in self._streams)
        return self

    def __exit__(self, *_: object) -> None:
        asides = [file for file in (sys.stdout, sys.stderr) if isinstance(file, Aside)]
        sys.stdout, sys.stderr = self._streams
        self._erase()
        for aside in asides:
            aside.give_rest()
        self._write(SHOW_CURSOR)

    def draw(self, lines: Sequence[Text]) -> None:
        """Draw a frame; no line is longer than the terminal is wide."""
        width = self._console.size.width
        if width != self._width:
            self._erase()
            self._width = width
        new = self._rendered(lines)
        parts = [self._to_top()]
        for number, (line, text) in enumerate(zip(new, lines, strict=True)):
            parts.append("\n" if number else "")
            if number >= len(self._lines) or line != self._lines[number]:
                # Behind a line that reaches the edge, terminals would erase its last character.
                parts.append(line + (ERASE_TO_END_OF_LINE if text.cell_len < width else ""))
        if len(new) < len(self._lines):
            parts.append(f"\n{ERASE_BELOW}{_up(1)}")
        self._write("".join(parts))
        self._lines, self._cells = new, [line.cell_len for line in lines]

    def say(self, text: str, file: IO[str]) -> None:
        """Write whole lines above the frame."""
        kept = self._lines
        self._erase()
        file.write(text)
        file.flush()
        self._write("\n".join(kept))
        self._lines, self._cells = kept, [Text.from_ansi(line).cell_len for line in kept]

    def _rendered(self, lines: Sequence[Text]) -> list[str]:
        """The lines with their colour codes; an empty frame has one empty line."""
        with self._console.capture() as captured:
            self._console.print(Text("\n").join(lines), end="", soft_wrap=True)
        return captured.get().split("\n")

    def _to_top(self) -> str:
        return "\r" + _up(len(self._lines) - 1)

    def _erase(self) -> None:
        """Take the frame away; a terminal that became narrower has folded its lines."""
        width = self._console.size.width
        height = sum(max(-(-count // width), 1) for count in self._cells) if width < self._width else len(self._cells)
        if self._lines:
            self._write(f"\r{_up(height - 1)}{ERASE_BELOW}")
        self._lines, self._cells = [], []

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()


class Aside(io.TextIOBase):
    """Takes the place of a stream that ends on the terminal while frames are drawn there."""

    def __init__(self, frames: Frames, file: IO[str]) -> None:
        super().__init__()
        self._frames, self._file = frames, file
        self._rest = ""

    @property
    def encoding(self) -> str:
        """Of the stream."""
        return self._file.encoding

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, text: str) -> int:
        whole, newline, self._rest = (self._rest + text).rpartition("\n")
        if newline:
            self._frames.say(whole + newline, self._file)
        return len(text)

    def give_rest(self) -> None:
        """Write the last line that was never ended."""
        self._file.write(self._rest)
        self._rest = ""


def _up(count: int) -> str:
    return f"\x1b[{count}A" if count > 0 else ""
