"""Ctrl-C ends a command with 130, whatever is drawn at that time, and never leaves the cursor hidden."""

from __future__ import annotations

import sys

import pytest

if sys.platform == "win32":
    pytest.skip("there are no ptys", allow_module_level=True)

from tests.terminal import Terminal

LONG = ["run", "reverse planet", "--model", "llada-tiny", "--device", "cpu", "--max-new-tokens", "200"]


@pytest.mark.parametrize(
    ("options", "sign"),
    [([], "Loading"), (["--no-live"], "Generating"), ([], r"step \d+/")],
    ids=["while it loads", "under a bar", "under the live view"],
)
def test_ctrl_c_ends_with_130_and_the_cursor_is_back(options, sign):
    terminal = Terminal([*LONG, *options, "-o", "stop_at_eos=false"], 80, 24)
    terminal.wait_for(sign)
    terminal.type("\x03")
    assert terminal.finish() == 130
    assert terminal.output.count("\x1b[?25l") == terminal.output.count("\x1b[?25h") > 0
    if sign.startswith("step"):  # terminals write ^C into a bar
        assert terminal.screen().strip() == ""
