"""Runs side by side: what is read of them, the table, and the Pareto pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("matplotlib")

from dllm_core.cli import main
from dllm_core.display.plots import Names, Point, front, pareto


def results(folder: Path, score: float | None, passes: int, seconds: float, tokens: int = 600) -> Path:
    """A results file with what `dllm eval --output` writes of one task."""
    task = {
        "plan": {"label": "acme qa"},
        "metric": "exact_match,none",
        "score": score,
        "standard_error": None if score is None else 2.0,
        "cost": {"requests": 10, "forward_passes": passes, "tokens": tokens},
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"tasks": [task], "timing": {"seconds": {"acme qa": seconds}}}))
    return folder


def compare(*folders: Path, more: tuple[str, ...] = ()) -> int:
    return main(["eval", *(part for folder in folders for part in ("--compare", str(folder))), *more])


def test_runs_are_compared_by_score_speed_and_passes(tmp_path, capsys):
    slow, fast = results(tmp_path / "slow", 90.0, 200, 30.0), results(tmp_path / "fast", 80.0, 40, 5.0)
    assert compare(slow, fast, more=("--json",)) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "run": "slow", "task": "acme qa", "metric": "exact_match,none", "score": 90.0, "standard_error": 2.0,
        "forward_passes_per_request": 20.0, "tokens_per_second": 20.0, "tokens_per_forward": 3.0,
    }  # fmt: skip
    assert (second["run"], second["tokens_per_second"], second["forward_passes_per_request"]) == ("fast", 120.0, 4.0)


def test_the_page_has_both_pictures_and_the_figures(tmp_path, capsys):
    runs = [
        results(tmp_path / name, score, passes, 5.0) for name, score, passes in (("a<b", 90.0, 200), ("c", 80.0, 40))
    ]
    out = tmp_path / "out"
    assert compare(*runs, more=("--output", str(out))) == 0
    assert "acme qa" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {"comparison.html", "acme-qa-speed.png", "acme-qa-passes.png"}
    assert (out / "acme-qa-speed.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "comparison.html").read_text(encoding="utf-8")
    assert page.count("<svg ") == 2
    assert "<td>a&lt;b</td>" in page
    assert "<td>80.0%</td>" in page
    assert "src=" not in page


def test_runs_without_a_score_or_without_tokens_have_no_picture(tmp_path):
    scored = results(tmp_path / "likelihoods", 50.0, 10, 1.0, tokens=0)
    out = tmp_path / "out"
    assert compare(scored, results(tmp_path / "none", None, 10, 1.0), more=("--output", str(out))) == 0
    assert {file.name for file in out.iterdir()} == {"comparison.html", "acme-qa-passes.png"}


def test_runs_of_one_name_are_told_apart(tmp_path, capsys):
    runs = [results(tmp_path / part / "out", 50.0, 10, 1.0) for part in ("a", "b")]
    assert compare(*runs, more=("--json",)) == 0
    assert [entry["run"] for entry in json.loads(capsys.readouterr().out)] == [str(run) for run in runs]


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        (None, (), "name a folder that dllm eval --output wrote"),
        ("{", (), "is not what dllm eval --output writes"),
        ("[]", (), "is not what dllm eval --output writes"),
        ("{}", ("--tasks", "a"), "without --tasks"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, text, more, says):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    assert compare(tmp_path, more=more) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_where_fewer_is_better_the_front_and_the_axis_turn_round():
    points = [Point("cheap", "s", 1.0, 60.0), Point("beaten", "s", 4.0, 60.0), Point("good", "s", 5.0, 90.0)]
    assert [point.label for point in front(points, fewer=True)] == ["good", "cheap"]
    assert [point.label for point in front(points)] == ["good"]
    for fewer in (True, False):
        axes = pareto(points, Names("", "", "", 100, fewer=fewer)).axes[0]
        assert axes.xaxis_inverted() == fewer
