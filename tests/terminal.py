"""A terminal for tests: a command runs behind a pty, and an emulator says what a person sees."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence

import pyte

PATIENCE = 60.0  # seconds until a command that says nothing is ended
FRAME = re.compile(r"(?=\r(?:\x1b\[\d+A|\x1b\[2K))")  # where the live view goes back to draw the next frame
# What no two runs share.
CLOCKS = ((r"\d+\.\d+\s+s\b", "N s"), (r"\b\d+\s+tokens/s", "N tokens/s"))


class Terminal:
    """A command of dllm that runs in a terminal of its own.

    The command is forked from this process, so that torch is imported only once.
    """

    def __init__(self, arguments: Sequence[str], width: int, height: int, **environment: str) -> None:
        self._width, self._height = width, height
        self.output = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end inside a character
        self._file, terminal = pty.openpty()
        self.resize(width, height)
        self._pid = os.fork()
        if self._pid == 0:
            _become(terminal, arguments, environment)
        os.close(terminal)

    def resize(self, width: int, height: int) -> None:
        """Give the terminal another size."""
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, text: str) -> None:
        """Type, as a person would; ``\\x03`` is Ctrl-C."""
        os.write(self._file, text.encode())

    def wait_for(self, pattern: str) -> None:
        """Read until the pattern was written behind what was read before."""
        start = len(self.output)
        for _ in self._reads():
            if re.search(pattern, self.output[start:]):
                return
        raise AssertionError(f"{pattern!r} never came; there was {self.output[start:]!r}")

    def finish(self) -> int:
        """Read to the end. Returns the exit code."""
        for _ in self._reads():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def screen(self) -> str:
        """What is seen now, without the clocks."""
        return self.screens()[-1]

    def screens(self) -> list[str]:
        """What was seen at the end of each frame."""
        screen = pyte.Screen(self._width, self._height)
        stream = pyte.Stream(screen)
        seen = []
        for part in FRAME.split(self.output):
            stream.feed(part)
            seen.append(_seen(screen))
        return seen

    def _reads(self) -> Iterator[None]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if not select.select([self._file], [], [], 1.0)[0]:
                continue
            try:
                read = os.read(self._file, 65536)
            except OSError:  # Linux says so when the command has ended
                return
            if not read:
                return
            self.output += self._decoder.decode(read)
            yield
        os.kill(self._pid, signal.SIGKILL)
        raise AssertionError(f"no end after {PATIENCE} s; the last was {self.output[-500:]!r}")


def _become(terminal: int, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """In the child: run the command, and end."""
    code = 99
    try:
        os.login_tty(terminal)
        for name in ("COLUMNS", "LINES"):  # what parallel tests set would win over the size of the terminal
            os.environ.pop(name, None)
        os.environ.update({"TERM": "xterm-256color"} | environment)
        sys.stdin, sys.stdout, sys.stderr = (open(n, mode, encoding="utf-8") for n, mode in enumerate("rww"))  # noqa: SIM115
        from dllm_core.cli import main

        code = main(list(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _seen(screen: pyte.Screen) -> str:
    text = "\n".join(line.rstrip() for line in screen.display).rstrip() + "\n"
    for pattern, name in CLOCKS:
        text = re.sub(pattern, name, text)
    return text
