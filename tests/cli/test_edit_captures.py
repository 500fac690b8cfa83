"""What people see of `dllm edit` in a terminal, kept as text in ``captures``; see `tests.cli.test_captures`."""

from __future__ import annotations

import sys

import pytest

if sys.platform == "win32":
    pytest.skip("there are no ptys", allow_module_level=True)

from tests.cli.test_captures import SIZES, check
from tests.terminal import Terminal

PLANTED = "def biggest(counnt, value):\n    retrn max(count, valu)\n"


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "biggest.py"
    path.write_text(PLANTED)
    return path


def shown(arguments: list[str], width: int, height: int) -> tuple[Terminal, int]:
    terminal = Terminal(["edit", *arguments], width, height)
    return terminal, terminal.finish()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_file_while_it_is_mended_and_behind_it(file, width, height):
    terminal, code = shown([file.name, "--device", "cpu"], width, height)
    assert code == 0
    check(f"edit-live-{width}x{height}", next(seen for seen in terminal.screens() if "step 1" in seen))
    check(f"edit-end-{width}x{height}", terminal.screen())
    for kind in ("\x1b[9;31m", "\x1b[4;30;102m"):  # struck out and underlined, as in the live view of a run
        assert kind in terminal.output


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_where_the_model_would_edit_and_errors(file, width, height):
    seen = []
    for options in (["--suspicion", "--device", "cpu"], ["--lines", "2:9"], ["--suspicion", "--write"]):
        terminal, code = shown([file.name, *options], width, height)
        seen.append(f"$ dllm edit {' '.join([file.name, *options])}\n{terminal.screen()}[{code}]\n")
    check(f"edit-other-{width}x{height}", "\n".join(seen))
