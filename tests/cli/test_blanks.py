"""`dllm run --infill`: the text around the blanks is left byte for byte."""

from __future__ import annotations

import io
import json
import re
from types import SimpleNamespace

import pytest

from dllm_core.cli import main
from dllm_core.cli.prompts import with_blanks_filled


@pytest.mark.parametrize("text", ["a  b[MASK:2]", " 1 + [MASK] ,  2 [MASK:3][MASK]\n\n  x ", "[MASK]y[MASK]"])
def test_the_text_around_blanks_is_left_byte_for_byte(text, capsys):
    assert main(["run", "--infill", text, "--json"]) == 0
    filled = json.loads(capsys.readouterr().out)["text"]
    given = re.split(r"\[MASK(?::\d+)?\]", text)
    assert re.fullmatch("(?s)" + ".*".join(map(re.escape, given)), filled)
    assert "MASK" not in filled


def test_blanks_are_filled_from_standard_input(monkeypatch, capsys):
    stdin = SimpleNamespace(buffer=io.BytesIO(b"12+[MASK:2]=57\n"), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["run", "--infill", "-"]) == 0
    assert capsys.readouterr().out == "12+45=57\n"


def test_blanks_are_filled_by_place():
    lengths = []

    def fill(length: int) -> str:
        lengths.append(length)
        return f"<{length}>"

    assert with_blanks_filled("a [MASK:3] b\t[MASK]<m>", "<m>", fill) == "a <3> b\t<1><1>"
    assert lengths == [3, 1, 1]


@pytest.mark.parametrize(
    "text",
    [
        b"12+[MASK:2]=57",
        b"12+[MASK:2]=57\n\n",
        b"\xef\xbb\xbf12+[MASK:2]=57\r\n\ta \x0c\r\n",
        "é 12+[MASK:2]=57\u2028x\x00".encode(),
    ],
    ids=["no last line end", "two of them", "mark, CRLF, form feed", "separators"],
)
def test_a_file_with_blanks_comes_back_byte_for_byte(text, monkeypatch, capfdbinary):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text), isatty=lambda: False))
    monkeypatch.setattr("sys.stdout", open(1, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    assert main(["run", "--infill", "-", "--device", "cpu"]) == 0
    before, after = text.split(b"[MASK:2]")
    out = capfdbinary.readouterr().out
    assert out.startswith(before)
    assert out.endswith(after)
    assert len(out) == len(before + after) + 2


def test_a_line_break_of_the_shell_is_a_line_break_and_a_backslash_is_one(capsys):
    assert main(["run", "--infill", "def add(a, b):\\n    return [MASK:8]", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"].startswith("def add(a, b):\\n    return ")
