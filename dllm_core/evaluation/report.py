"""Tables of results and of plans for the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from dllm_core.evaluation.forecast import Forecast
    from dllm_core.evaluation.runner import TaskResult

NARROWEST = 100


def show(results: Sequence[TaskResult], *, tolerance: float | None) -> None:
    """Print what came of each task, beside the published scores where there are any.

    Args:
        tolerance: points between ours and a published score that count as the same.
    """
    names = list(dict.fromkeys(name for result in results for name in result.plan.published))
    table = _table("task", "metric", "score %", "± error", *names, "documents", "forward passes")
    for result in results:
        table.add_row(
            result.plan.name,
            result.plan.metric or next((m for m in next(iter(result.metrics.values()), {}) if "stderr" not in m), ""),
            _number(result.score),
            _number(result.standard_error),
            *(_published(result, name, tolerance) for name in names),
            str(sum(result.documents.values())),
            str(result.cost.forward_passes),
        )
        if len(result.metrics) > 1:
            for task, metrics in result.metrics.items():
                first = next(name for name in metrics if "stderr" not in name)
                table.add_row(f"  {task}", first, _number(100 * metrics[first]))
    _print(table)
    for result in results:
        if result.likelihood is not None:
            mean, largest = result.likelihood["mean"], result.likelihood["largest"]
            _say(f"{result.plan.name}: likelihoods ± {mean:.3g} nats on average, {largest:.3g} at most")


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
