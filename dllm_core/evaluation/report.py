"""Tables of results and of plans for the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dllm_core.evaluation.scores import error_of, first_metric, is_share, scaled

if TYPE_CHECKING:
    from dllm_core.evaluation.forecast import Forecast
    from dllm_core.evaluation.runner import TaskResult

WIDEST = 10_000  # columns, for measuring what a table would take


def show(results: Sequence[TaskResult], *, tolerance: float | None) -> None:
    """Print what came of each task, beside the published scores where there are any.

    Args:
        tolerance: points between ours and a published score that count as the same.
    """
    _print(score_rows(results, tolerance=tolerance))
    for line in likelihood_lines(results):
        _say(line)


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Print a table, header first."""
    _print([Row(cells) for cells in rows])


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
    rows = [Row(("task", "metric", "score", "± error", *names, "documents", "forward passes", "tokens/s"))]
    for result in results:
        speed = result.cost.tokens / result.seconds if result.seconds else 0.0
        published = [_published(result, name, tolerance) for name in names]
        total, passes = str(sum(result.documents.values())), str(result.cost.forward_passes)
        scores = (score_text(result.metric, result.score), _number(result.standard_error))
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
    scores = (score_text(name, scaled(name, metrics[name])), _number(scaled(name, error_of(metrics, name))))
    return Row((task, name, *scores, *[""] * published, str(result.documents.get(task, "")), "", ""), is_part=True)


def show_plan(model: str, forecasts: Sequence[Forecast]) -> None:
    """Print what would be done, and what it costs at most."""
    rows = [Row(("task", "settings", "shots", "requests", "forward passes", "published"))]
    for each in forecasts:
        how = [each.plan.sampler, "chat" if each.plan.chat else None, each.plan.likelihood]
        settings = [*filter(None, how), *(f"{name}={value}" for name, value in each.plan.options.items())]
        shots, published = each.plan.num_fewshot, each.plan.published.items()
        numbers = ("?" if number is None else str(number) for number in (each.requests, each.forward_passes))
        cells = (each.plan.name, " ".join(settings), "task's" if shots is None else str(shots), *numbers)
        rows.append(Row((*cells, ", ".join(f"{name} {value}" for name, value in published))))
    known = sum(each.forward_passes or 0 for each in forecasts)
    _say(f"{model}: at most {known} forward passes; nothing was run")
    _print(rows)
    for problem in dict.fromkeys(each.problem for each in forecasts if each.problem is not None):
        _say(problem)


def _published(result: TaskResult, name: str, tolerance: float | None) -> str:
    """A published score, and whether ours is it: within the tolerance, or how far off."""
    want = result.plan.published.get(name)
    if want is None:
        return ""
    if result.score is None or tolerance is None:
        return f"{want:.1f}"
    apart = result.score - want
    return f"{want:.1f} (same)" if abs(apart) <= tolerance else f"{want:.1f} ({apart:+.1f})"


def score_text(metric: str, score: float | None) -> str:
    """A score with its unit; a perplexity has none."""
    if score is None:
        return ""
    return f"{score:.1f}%" if is_share(metric) else f"{score:.4g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value < 1e5 else f"{value:.3g}"


def _print(rows: Sequence[Row]) -> None:
    """A table, header first; on a terminal that is too narrow for it, a paragraph a row."""
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    table = _table(rows)
    width = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    if not console.is_terminal:
        console.width = max(width, console.width)
    if width <= console.width:
        console.print(table)
        return
    for row in rows[1:]:
        console.print(_paragraph(rows[0].cells, row))


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(rows[0].cells):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*(f"  {cell}" if row.is_part and not number else cell for number, cell in enumerate(row.cells)))
    return table


def _paragraph(names: Sequence[str], row: Row) -> Group:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, cell in zip(names[1:], row.cells[1:], strict=True):
        if cell:
            grid.add_row(name, cell)
    indent = 2 * (1 + row.is_part)
    return Group(Text(" " * (indent - 2) + row.cells[0], style="bold"), Padding(grid, (0, 0, 0, indent), expand=False))


def _say(text: str) -> None:
    """A line of text, broken between words on a terminal and nowhere else."""
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    console.print(text, soft_wrap=not console.is_terminal)
