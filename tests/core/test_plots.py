"""Pictures: what stands on the front, what is drawn of a training log, and files that need nothing else."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from dllm_core.display import plots
from dllm_core.display.plots import Names, Point, front, pareto, read_training_log, render, training_curves
from dllm_core.errors import DataError, OptionError

POINTS = [Point("slow", "a", 1, 99), Point("bad", "a", 2, 80), Point("fast", "b", 9, 90), Point("worse", "b", 8, 90)]
NAMES = Names("a <title>", "x", "y", most=100)
LOG = [{"step": 10, "loss": 3.0, "learning_rate": 1e-3}, {"step": 20, "loss": 2.0, "eval_loss": 2.5}]


def test_the_front_is_what_nothing_beats_in_both() -> None:
    assert [point.label for point in front(POINTS)] == ["slow", "fast"]


def test_every_point_has_a_number_that_the_legend_explains_and_a_marker_by_series() -> None:
    figure = pareto(POINTS, NAMES)
    axes, (legend,) = figure.axes[0], figure.legends
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3", "4"]
    assert [text.get_text() for text in legend.get_texts()] == ["1  slow", "2  bad", "3  fast", "4  worse"]
    shapes = [tuple(map(tuple, mark.get_paths()[0].vertices)) for mark in axes.collections]
    assert shapes[0] == shapes[1] != shapes[2]  # told apart without colours
    assert axes.get_ylim()[1] <= 102


def test_numbers_of_points_in_one_place_do_not_cover_each_other() -> None:
    texts = pareto([Point(str(n), "a", 5, 50) for n in range(4)], NAMES).axes[0].texts
    heights = sorted(text.xyann[1] for text in texts)
    assert all(b - a >= plots.LABEL_HEIGHT for a, b in itertools.pairwise(heights))


def test_nothing_to_draw() -> None:
    with pytest.raises(OptionError, match="nothing to draw"):
        pareto([], NAMES)
    with pytest.raises(OptionError, match="no losses"):
        training_curves({"run": [{"step": 1, "epoch": 0.1}]})


def test_training_curves_show_what_was_logged() -> None:
    axes = training_curves({"run": LOG}).axes
    assert [each.get_ylabel() for each in axes] == ["loss", "learning rate"]
    assert [line.get_xydata().tolist() for line in axes[0].lines] == [[[10, 3.0], [20, 2.0]], [[20, 2.5]]]
    both = training_curves({"one": LOG, "two": LOG}).axes[0]
    assert {line.get_label() for line in both.lines} == {
        f"{run} {k}" for run in ("one", "two") for k in ("training", "evaluation")
    }
    assert len({(line.get_marker(), line.get_linestyle()) for line in both.lines}) == 4  # told apart without colours


def test_the_log_of_the_latest_checkpoint_is_read(tmp_path: Path) -> None:
    for steps in (1, 2):
        folder = tmp_path / "out" / f"checkpoint-{steps}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": LOG[:steps]}), encoding="utf-8")
    assert read_training_log(tmp_path / "out") == LOG
    assert read_training_log(tmp_path / "out/checkpoint-1/trainer_state.json") == LOG[:1]


def test_a_log_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no trainer_state"):
        read_training_log(tmp_path)
    (tmp_path / "trainer_state.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="log_history"):
        read_training_log(tmp_path)


@pytest.mark.parametrize("suffix", plots.FORMATS)
def test_the_same_figures_give_the_same_file(suffix: str) -> None:
    one, two = (render(pareto(POINTS, NAMES), suffix, title="a <b>", table=[["h"], ["<c>"]]) for _ in range(2))
    assert one == two
    if suffix == ".html":
        page = one.decode()
        assert "a &lt;b&gt;" in page
        assert "<td>&lt;c&gt;</td>" in page
        assert not any(word in page for word in ("<script", "<link", "src=", "@import", "url(http"))
