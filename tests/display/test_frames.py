"""Frames on a terminal: the screen holds the last one and what stood above it, and nothing is erased in between."""

from __future__ import annotations

import io
import sys
from contextlib import suppress

import pyte
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from dllm_core.display.frames import Frames

WIDTH, HEIGHT = 20, 12
line = st.text(alphabet="ab 你🦊", max_size=9).map(lambda text: Text(text, "bold red"))
lines = st.lists(line, min_size=1, max_size=HEIGHT - 2)


class Terminal(io.StringIO):
    """A terminal in memory, whose other end is emulated."""

    def __init__(self) -> None:
        super().__init__()
        self.display = pyte.Screen(WIDTH, HEIGHT)
        self._stream = pyte.Stream(self.display)
        self.written: list[str] = []

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise io.UnsupportedOperation

    def write(self, text: str) -> int:
        self.written += [text] * bool(text)
        self._stream.feed(text.replace("\n", "\r\n"))
        return len(text)

    @property
    def console(self) -> Console:
        return Console(
            file=self, force_terminal=True, width=WIDTH, height=HEIGHT, color_system="truecolor", _environ={}
        )

    @property
    def seen(self) -> list[str]:
        """The lines of the screen, to the last that is not empty."""
        return "\n".join(row.rstrip() for row in self.display.display).rstrip().split("\n")


def plain(frame: list[Text]) -> list[str]:
    return "\n".join(line.plain.rstrip() for line in frame).rstrip().split("\n")


@given(st.lists(lines, min_size=1, max_size=6))
def test_the_screen_holds_the_last_frame_and_in_the_end_none(frames):
    terminal = Terminal()
    terminal.write("above\n")
    with Frames(terminal.console) as drawn:
        for frame in frames:
            drawn.draw(frame)
            assert terminal.seen == plain([Text("above"), *frame])
    assert terminal.seen == ["above"]
    assert not terminal.display.cursor.hidden
    assert (terminal.display.cursor.x, terminal.display.cursor.y) == (0, 1)


def test_a_line_that_reaches_the_edge_keeps_its_last_character():
    terminal = Terminal()
    full = [Text("x" * WIDTH), Text("y" * WIDTH)]
    with Frames(terminal.console) as drawn:
        drawn.draw([*full, Text("z")])
        drawn.draw(full)
        assert terminal.seen == plain(full)


def test_no_line_is_blank_between_two_frames_and_what_stays_is_not_written_again():
    terminal = Terminal()
    with Frames(terminal.console) as drawn:
        drawn.draw([Text("one"), Text("two"), Text("three")])
        before = len(terminal.written)
        drawn.draw([Text("one"), Text("2"), Text("three")])
        (written,) = terminal.written[before:]  # at once
    assert written == "\r\x1b[2A\n2\x1b[K\n"


def test_what_is_printed_meanwhile_stands_above(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Frames(terminal.console) as drawn:
        drawn.draw([Text("one"), Text("two")])
        print("a warning", file=sys.stderr)
        assert terminal.seen == ["a warning", "one", "two"]
        print("without an end", end="", file=sys.stderr)
        drawn.draw([Text("one"), Text("2")])
        assert terminal.seen == ["a warning", "one", "2"]
    assert terminal.seen == ["a warning", "without an end"]
    assert sys.stderr is terminal


def test_the_streams_and_the_cursor_are_back_after_an_error(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with suppress(KeyboardInterrupt), Frames(terminal.console) as drawn:
        drawn.draw([Text("one")])
        raise KeyboardInterrupt
    assert sys.stderr is terminal
    assert terminal.seen == [""]
    assert not terminal.display.cursor.hidden
