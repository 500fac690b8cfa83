"""Lines that a person types: edited and remembered with readline, where Python has it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MOST_LINES = 1000  # that are remembered


def history_file() -> Path:
    """Where the lines of `dllm chat` are kept: the user's state folder, as XDG says."""
    given = os.environ.get("XDG_STATE_HOME", "")
    # XDG: relative paths there are to be ignored.
    state = Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state"
    return state / "dllm" / "chat_history"


@contextmanager
def remembered_lines(commands: Sequence[str]) -> Iterator[None]:
    """Give `input` line editing, the lines of earlier times, and completion of commands with Tab; keep them at the end.

    Nothing happens where Python has no readline, and nothing is kept where the state folder cannot be written.
    """
    if not importlib.util.find_spec("readline"):
        yield
        return
    import readline

    path, may_be_kept = history_file(), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    except OSError as error:
        print(f"(lines are not remembered: {path}: {error.strerror})", file=sys.stderr)
    else:
        readline.set_history_length(MOST_LINES)
        may_be_kept = True
    readline.set_completer_delims(" ")
    readline.set_completer(lambda text, number: _completion(commands, text, number))
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    try:
        yield
    finally:
        if may_be_kept:
            _keep(path)


def _keep(path: Path) -> None:
    import readline

    try:
        readline.write_history_file(path)
    except OSError as error:
        print(f"(lines are not remembered: {path}: {error.strerror})", file=sys.stderr)


def _completion(commands: Sequence[str], text: str, number: int) -> str | None:
    found = [command for command in commands if text.startswith("/") and command.startswith(text)]
    return found[number] if number < len(found) else None
