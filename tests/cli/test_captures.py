"""What people see in a terminal, kept as text in ``captures``; ``DLLM_CAPTURE=1`` writes them anew, to be looked at.

Times and speeds are left out of them, as no two runs share those.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("there are no ptys", allow_module_level=True)

from tests.terminal import Terminal

CAPTURES = Path(__file__).parent / "captures"
# The widest at rest: what goes wrong goes wrong on narrow terminals.
SIZES = [(80, 24), pytest.param(120, 40, marks=pytest.mark.slow), (40, 24)]
ERRORS = {
    "no-command": ["rnu"],
    "no-folder": ["run", "12+30=", "--output", "/no/such/folder/with/a/long/name/that/no/line/holds"],
    "no-option": ["run", "12+30=", "-o", "blok_size=8"],
    "no-blank": ["run", "--infill", "a text without any"],
    "both": ["run", "12+30=", "--prompts-file", "prompts.jsonl"],
    "chat-no-option": ["chat", "-o", "steps"],
}


def check(name: str, seen: str) -> None:
    path = CAPTURES / f"{name}.txt"
    if os.environ.get("DLLM_CAPTURE"):
        path.write_text(seen, encoding="utf-8")
    assert seen == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_run_while_it_is_watched_and_behind_it(width, height):
    terminal = Terminal(["run", "--model", "llada-tiny", "--device", "cpu"], width, height)
    assert terminal.finish() == 0
    frames = [seen for seen in terminal.screens() if "step 5/" in seen]
    check(f"run-live-{width}x{height}", frames[-1])
    check(f"run-end-{width}x{height}", terminal.screen())


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_errors(width, height):
    seen = []
    for arguments in ERRORS.values():
        terminal = Terminal(arguments, width, height, HF_HUB_OFFLINE="1")
        code = terminal.finish()
        seen.append(f"$ dllm {' '.join(arguments)}\n{terminal.screen()}[{code}]\n")
    check(f"errors-{width}x{height}", "\n".join(seen))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_chat(width, height, tmp_path):
    arguments = ["chat", "--model", "llada-tiny", "--device", "cpu", "-o", "steps=8"]
    terminal = Terminal(arguments, width, height, XDG_STATE_HOME=str(tmp_path))
    terminal.wait_for("> ")
    for line, answer in (
        ("12+30=", "42\r\n.*> "),
        ("/se\t steps 16", "steps = 16\r\n.*> "),
        ("/infill 12+[MASK:2]=57", "12\\+45=57\r\n.*> "),
        ("/reste", "(?s)Error.*> "),
        ("/reset", "anew.\r\n.*> "),
    ):
        terminal.type(line + "\r")
        terminal.wait_for(answer)
    terminal.type("\x04")
    assert terminal.finish() == 0
    check(f"chat-{width}x{height}", terminal.screen())
    kept = (tmp_path / "dllm" / "chat_history").read_text().splitlines()
    assert [line for line in kept if not line.startswith("_")][:2] == ["12+30=", "/set steps 16"]
    assert (tmp_path / "dllm" / "chat_history").stat().st_mode & 0o077 == 0
