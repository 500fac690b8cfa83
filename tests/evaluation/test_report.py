"""Tables of results and plans as a terminal shows them: whole, or a paragraph a row where they do not fit."""

from __future__ import annotations

import io
import re

import pytest

pytest.importorskip("lm_eval")

from dllm_core.evaluation.forecast import Forecast
from dllm_core.evaluation.plan import TaskPlan
from dllm_core.evaluation.report import score_text, show_plan, show_table

PLAN = TaskPlan(
    task="acme_questions_and_answers",
    sampler="acme/fast",
    chat=True,
    num_fewshot=5,
    options={"max_new_tokens": 512, "suppress_confidence_tokens": [126081, 126348]},
    metric="exact_match,flexible-extract",
    published={"official": 69.4, "reproduced": 74.7},
)
CELLS = ("acme_questions_and_answers", "chat", "max_new_tokens=512", "1319", "84480", "official 69.4, reproduced 74.7")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch, columns: int, *, terminal: bool = True) -> list[str]:
    """The lines of a plan of two tasks that lack the same data."""
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    show_plan("acme/acme-8b", [Forecast(PLAN, 1319, 84480, "the data are not here, " * 6)] * 2)
    return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines()


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_nothing_is_wider_than_the_terminal_and_nothing_is_lost(monkeypatch, columns):
    lines = shown(monkeypatch, columns)
    assert max(map(len, lines)) <= columns
    flat = " ".join(" ".join(lines).split())
    for cell in CELLS:
        assert cell in flat
    assert flat.count("the data are not here") == 6  # said once


def test_where_there_is_room_or_no_terminal_it_is_one_table(monkeypatch):
    for lines in (shown(monkeypatch, 300), shown(monkeypatch, 40, terminal=False)):
        header, row = next((number, line) for number, line in enumerate(lines) if line.startswith("task "))
        assert [name in row for name in ("settings", "shots", "requests", "published")] == [True] * 4
        assert all(cell in lines[header + 1] for cell in CELLS)


def test_markup_in_names_is_text(monkeypatch, capsys):
    show_table([("run", "task"), ("[bold]a[/]", ":smile:")])
    assert "[bold]a[/]  :smile:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metric", "score", "text"),
    [
        ("exact_match,strict-match", 69.43, "69.4%"),
        ("word_perplexity,none", 12.3456, "12.35"),
        ("bits_per_byte,none", 0.81234, "0.8123"),
        ("acc,none", None, ""),
    ],
)
def test_scores_have_their_unit(metric, score, text):
    assert score_text(metric, score) == text
