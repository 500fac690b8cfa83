"""The bar of long work: on a terminal with the time left, elsewhere nothing."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

WORK = """
from dllm_core.display.progress import progress_bar
with progress_bar("Working", {total}) as tell:
    for done in range(5):
        tell(done)
"""


PHASES = """
from dllm_core.display.progress import progress_bar
with progress_bar("Waiting [/here]", None, at_once=False) as tell:
    print("nothing yet", file=__import__("sys").stderr)
    tell(1, 4, "Loading weights")
    tell(2, 4, "Loading weights")
    tell(0, None, "Writing weights")
"""


def on_a_terminal(total: int | None, work: str = WORK) -> str:
    """What a terminal shows that is the stderr of the work."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color"}
    done = subprocess.run(
        [sys.executable, "-c", work.format(total=total)], stderr=theirs, stdout=subprocess.PIPE, env=environment
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert (done.returncode, done.stdout) == (0, b"")
    return shown


@pytest.mark.parametrize(("total", "time"), [(5, "-:--:--"), (None, "0:00:00")])
def test_a_terminal_shows_what_is_done_and_the_time(total: int | None, time: str) -> None:
    shown = on_a_terminal(total)
    assert "Working" in shown
    assert time in shown
    assert shown.endswith("\x1b[2K")  # and is left clean


def test_a_bar_may_wait_and_then_name_phases() -> None:
    shown = on_a_terminal(None, PHASES)
    assert shown.startswith("nothing yet")
    assert "Waiting" not in shown
    assert shown.index("Loading weights") < shown.index("-:--:--") < shown.index("Writing weights")
    assert "0:00:00" in shown[shown.index("Writing weights") :]


def test_a_pipe_shows_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", WORK.format(total=5)], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
