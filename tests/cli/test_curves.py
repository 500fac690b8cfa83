"""`dllm visualize RUN_FOLDER`: the curves of a training, as PNG, SVG and a page, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dllm_core.cli import main
from dllm_core.cli.curves import rows


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """The output folder of a training: two checkpoints, the second of which knows more."""
    for last in (4, 8):
        log = [{"step": step, "loss": 2.0 / step, "learning_rate": 1e-3} for step in range(1, last + 1)]
        folder = tmp_path / f"run/checkpoint-{last}"
        folder.mkdir(parents=True)
        log.append({"step": last, "eval_loss": 0.5})
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return tmp_path / "run"


def test_the_curves_of_a_folder_are_drawn(training, tmp_path, capsys):
    names = [str(tmp_path / f"curves{ending}") for ending in (".png", ".svg", ".html")]
    assert main(["visualize", str(training), "--png", names[0], "--svg", names[1], "--html", names[2]]) == 0
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", [f"wrote {names[n]}" for n in (2, 1, 0)])
    assert Path(names[0]).read_bytes().startswith(b"\x89PNG")
    page = Path(names[2]).read_text()
    assert "<h1>run: training</h1>" in page
    assert "<td>8</td><td>0.25</td><td>0.5</td><td>0.001</td>" in page
    assert "http" not in page.split("<tr>", 1)[1]


def test_the_log_as_json(training, capsys):
    assert main(["visualize", str(training / "checkpoint-4" / "trainer_state.json"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 5


def test_steps_without_a_value_are_left_empty():
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.5}, {"step": 2, "runtime": 3}]
    assert list(rows(log)) == [["step", "loss", "eval_loss"], ["1", "2", ""], ["2", "1", "1.5"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "is a training, whose curves are drawn into a file; give --png, --svg or --html FILE"),
        (["--gif", "a.gif"], "the curves of a training do not move"),
        (["--png", "a.html"], "--png a.html must end in .png"),
    ],
)
def test_what_a_training_has_not_is_refused_in_words(arguments, said, training, capsys):
    assert main(["visualize", str(training), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_a_log_is_refused_in_words(tmp_path, capsys):
    assert main(["visualize", str(tmp_path), "--png", str(tmp_path / "a.png")]) == 2
    assert "no trainer_state.json at or below" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
