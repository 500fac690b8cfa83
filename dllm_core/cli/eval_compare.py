"""Evaluations side by side: `dllm eval --compare DIR --compare DIR`, as a table and as Pareto pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_core.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS, PAGE = "results.json", "comparison.html"
HEADER = ("run", "task", "metric", "score", "± error", "passes/request", "tokens/s", "tokens/pass")


@dataclass(frozen=True)
class Entry:
    """One task of one run.

    Args:
        run: name of its folder.
        task: name of the plan.
        metric: what was compared.
        score, error: in percent where the metric is a share; None where there is none.
        passes: forward passes a request.
        speed: tokens a second; 0 where nothing was generated.
        stride: tokens a forward pass.
    """

    run: str
    task: str
    metric: str
    score: float | None
    error: float | None
    passes: float
    speed: float
    stride: float

    @property
    def cells(self) -> list[str]:
        from dllm_core.evaluation.report import score_text

        score, error = score_text(self.metric, self.score), "" if self.error is None else f"{self.error:.1f}"
        rates = [f"{value:.2f}" if value else "" for value in (self.passes, self.speed, self.stride)]
        return [self.run, self.task, self.metric, score, error, *rates]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "run": self.run,
            "task": self.task,
            "metric": self.metric,
            "score": self.score,
            "standard_error": self.error,
            "forward_passes_per_request": self.passes,
            "tokens_per_second": self.speed,
            "tokens_per_forward": self.stride,
        }


def compare(folders: Sequence[Path], output: Path | None, *, as_json: bool) -> None:
    """Print the runs task by task; with `output` write the page, and a PNG for each picture on it.

    Raises:
        DataError: a folder holds no results.
    """
    import click

    from dllm_core.evaluation.report import show_table

    entries = [entry for name, folder in named(folders).items() for entry in read_entries(name, folder)]
    entries.sort(key=lambda entry: entry.task)  # stable: runs stay in the order in which they were named
    if output is not None:
        write(entries, output)
    if as_json:
        click.echo(json.dumps([entry.as_dict() for entry in entries], indent=2))
    else:
        show_table([HEADER, *(entry.cells for entry in entries)])


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by their last part, or whole where two end alike."""
    last = [folder.resolve().name for folder in folders]
    return {name if last.count(name) == 1 else str(folder): folder for name, folder in zip(last, folders, strict=True)}


def read_entries(run: str, folder: Path) -> list[Entry]:
    """The tasks of a run.

    Raises:
        DataError: there is no results file, or it is none of ours.
    """
    file = folder / RESULTS
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        return [_entry(run, task, report["timing"]["seconds"]) for task in report["tasks"]]
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; name a folder that dllm eval --output wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not what dllm eval --output writes; evaluate again") from error


def write(entries: Sequence[Entry], output: Path) -> None:
    """The page with the table and all pictures, and each picture as a PNG. Raises PlotsUnavailableError."""
    from dllm_core.display import plots

    output.mkdir(parents=True, exist_ok=True)
    plots.check(output / PAGE)
    drawings = {
        f"{slug(task)}-{kind}": figure
        for task in dict.fromkeys(entry.task for entry in entries)
        for kind, figure in pictures(task, entries).items()
    }
    for name, figure in drawings.items():
        (output / f"{name}.png").write_bytes(plots.render(figure, ".png"))
    svgs = [plots.render(figure, ".svg", title=name) for name, figure in drawings.items()]
    table = [HEADER, *(entry.cells for entry in entries)]
    (output / PAGE).write_bytes(plots.gallery(svgs, "Evaluations side by side", table))


def pictures(task: str, entries: Sequence[Entry]) -> dict[str, Figure]:
    """Score against tokens a second, and against forward passes; none where nothing was scored or generated."""
    from dllm_core.display.plots import Names, Point, pareto
    from dllm_core.evaluation.scores import is_share

    scored = [entry for entry in entries if entry.task == task and entry.score is not None]
    title = f"{task}: {scored[0].metric}" if scored else task
    score, most = ("score, %", 100) if all(is_share(entry.metric) for entry in scored) else ("score", None)
    fast = [Point(e.run, e.run, e.speed, e.score, e.error or 0.0) for e in scored if e.speed]
    few = [Point(e.run, e.run, e.passes, e.score, e.error or 0.0) for e in scored if e.passes]
    passes = Names(title, "forward passes a request, fewer to the right", score, most, fewer=True)
    drawn = {"speed": (fast, Names(title, "tokens/s", score, most)), "passes": (few, passes)}
    return {kind: pareto(points, names) for kind, (points, names) in drawn.items() if points}


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def _entry(run: str, task: Mapping[str, Any], seconds: Mapping[str, float]) -> Entry:
    name, cost = task["plan"]["label"], task["cost"]
    return Entry(
        run=run,
        task=name,
        metric=task["metric"],
        score=task["score"],
        error=task["standard_error"],
        passes=cost["forward_passes"] / cost["requests"] if cost["requests"] else 0.0,
        speed=cost["tokens"] / seconds[name] if seconds[name] else 0.0,
        stride=cost["tokens"] / cost["forward_passes"] if cost["forward_passes"] else 0.0,
    )
