"""How an error is written: on one line for programs, broken between words where a terminal would break inside them."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import TextIO


def say_error(text: str) -> None:
    """Write an error to stderr."""
    print(fitted(text, sys.stderr), file=sys.stderr)


def fitted(text: str, stream: TextIO) -> str:
    """The text as it is to be written there.

    Words that are longer than a line, such as paths, are left whole, so that they can be copied.
    """
    if not stream.isatty():
        return text
    width = terminal_width(stream)
    return "\n".join(_broken(line, width) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    return textwrap.fill(
        line, width, break_long_words=False, break_on_hyphens=False, drop_whitespace=True, replace_whitespace=False
    )


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal behind a stream; 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80
