"""Tables of results and of plans for the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from dllm_core.evaluation.scores import error_of, first_metric

if TYPE_CHECKING:
    from dllm_core.evaluation.forecast import Forecast
    from dllm_core.evaluation.runner import TaskResult

NARROWEST = 112


def show(results: Sequence[TaskResult], *, tolerance: float | None) -> None:
    """Print what came of each task, beside the published scores where there are any.

    Args:
        tolerance: points between ours and a published score that count as the same.
    """
    header, *rows = score_rows(results, tolerance=tolerance)
    table = _table(*header.cells)
    for row in rows:
        table.add_row(*(f"  {cell}" if row.is_part and not number else cell for number, cell in enumerate(row.cells)))
    _print(table)
    for line in likelihood_lines(results):
        _say(line)


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Print a table, header first."""
    header, *rest = rows
    table = _table(*header)
    for row in rest:
        table.add_row(*row)
    _print(table)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        cells: as many as the header has.
        is_part: it is a task of the group in a line above.
    """

    cells: Sequence[str]
    is_part: bool = False


def score_rows(results: Sequence[TaskResult], *, tolerance: float | None) -> list[Row]:
    """The table of scores, header first, for the terminal and for pages; arguments as of `show`."""
    names = list(dict.fromkeys(name for result in results for name in result.plan.published))
    rows = [Row(("task", "metric", "score %", "± error", *names, "documents", "forward passes", "tokens/s"))]
    for result in results:
        speed = result.cost.tokens / result.seconds if result.seconds else 0.0
        published = [_published(result, name, tolerance) for name in names]
        total, passes = str(sum(result.documents.values())), str(result.cost.forward_passes)
        scores = (_number(result.score), _number(result.standard_error))
        rows.append(Row((result.plan.name, result.metric, *scores, *published, total, passes, _number(speed or None))))
        if len(result.metrics) > 1:
            rows += [_part(result, task, metrics, len(names)) for task, metrics in result.metrics.items()]
    return rows


def likelihood_lines(results: Sequence[TaskResult]) -> list[str]:
    """The standard errors of estimated likelihoods, a line for each plan that has some."""
    return [
        f"{each.plan.name}: likelihoods ± {each.likelihood['mean']:.3g} nats on average, "
        f"{each.likelihood['largest']:.3g} at most"
        for each in results
        if each.likelihood is not None
    ]


def _part(result: TaskResult, task: str, metrics: Mapping[str, float], published: int) -> Row:
    """A task of a group, or the group itself among its tasks, by the compared metric where it has that."""
    name = result.metric if result.metric in metrics else first_metric(metrics)
    scores = (_number(100 * metrics[name]), _number(100 * error) if (error := error_of(metrics, name)) else "")
    return Row((task, name, *scores, *[""] * published, str(result.documents.get(task, "")), "", ""), is_part=True)


def show_plan(model: str, forecasts: Sequence[Forecast]) -> None:
    """Print what would be done, and what it costs at most."""
    table = _table("task", "settings", "shots", "requests", "forward passes", "published")
    for each in forecasts:
        settings = [f"{name}={value}" for name, value in each.plan.options.items()]
        shots = each.plan.num_fewshot
        table.add_row(
            each.plan.name,
            " ".join(settings),
            "task's" if shots is None else str(shots),
            "?" if each.requests is None else str(each.requests),
            "?" if each.forward_passes is None else str(each.forward_passes),
            " ".join(f"{name} {value}" for name, value in each.plan.published.items()),
        )
    known = sum(each.forward_passes or 0 for each in forecasts)
    _say(f"{model}: at most {known} forward passes; nothing was run")
    _print(table)
    for each in forecasts:
        if each.problem is not None:
            _say(f"{each.plan.name}: {each.problem}")


def _published(result: TaskResult, name: str, tolerance: float | None) -> str:
    """A published score, and whether ours is it: within the tolerance, or how far off."""
    want = result.plan.published.get(name)
    if want is None:
        return ""
    if result.score is None or tolerance is None:
        return f"{want:.1f}"
    apart = result.score - want
    return f"{want:.1f} (same)" if abs(apart) <= tolerance else f"{want:.1f} ({apart:+.1f})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", overflow="fold")
    return table


def _print(table: Table) -> None:
    console = Console(file=sys.stdout)
    console.width = max(console.width, NARROWEST)
    console.print(table)


def _say(text: str) -> None:
    Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False).print(text)
