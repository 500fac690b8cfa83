"""How errors and typed lines are treated: whole words on a terminal, one line for programs, a history in its place."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_core.cli import errors
from dllm_core.cli.errors import fitted
from dllm_core.cli.line_editing import history_file


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(text=st.text(alphabet="ab- \n", max_size=200), width=st.integers(10, 60))
def test_only_words_that_are_longer_than_a_line_outgrow_it(text, width):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "terminal_width", lambda stream: width)
        lines = fitted(text, Screen()).split("\n")
    assert [word for line in lines for word in line.split()] == text.split()
    assert all(len(line) <= width or " " not in line.strip() for line in lines)


def test_programs_get_an_error_on_one_line():
    text = "Error: " + "word " * 100
    assert fitted(text, io.StringIO()) == text


@pytest.mark.parametrize(
    ("given", "expected"),
    [("/state", "/state/dllm/chat_history"), ("", "~/.local/state/dllm/chat_history"), ("here", None)],
)
def test_the_history_lies_where_xdg_says(given, expected, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", given)
    assert history_file() == Path(expected or "~/.local/state/dllm/chat_history").expanduser()
