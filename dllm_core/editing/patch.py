"""Unified diffs that ``git apply`` and ``patch`` take."""

from __future__ import annotations

import difflib

NO_END = "\\ No newline at end of file\n"


def unified_diff(before: str, after: str, name: str, *, context: int = 3) -> str:
    """The patch from one text to the other; empty where they are the same.

    Args:
        name: path of the file, relative and with forward slashes.
        context: unchanged lines around each change.
    """
    names = [f"{side}/{name}" for side in "ab"]
    quoted = [_quoted(each) for each in names]
    lines = difflib.unified_diff(_lines(before), _lines(after), *quoted, n=context)
    return "".join(_ended(line) for line in lines)


def _lines(text: str) -> list[str]:
    """Lines with their ends, as git counts them: only a line feed ends one."""
    parts = text.split("\n")
    return [part + "\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _ended(line: str) -> str:
    return line if line.endswith("\n") else line + "\n" + NO_END


def _quoted(name: str) -> str:
    """As git writes names with characters that would end them: in quotes, bytes in octal."""
    if all(letter.isprintable() and letter not in '"\\' and letter.isascii() for letter in name):
        return name + ("\t" if " " in name else "")
    return '"' + "".join(_escaped(byte) for byte in name.encode()) + '"'


def _escaped(byte: int) -> str:
    if byte in b'"\\':
        return "\\" + chr(byte)
    return chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
