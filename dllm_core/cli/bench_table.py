"""The table of `dllm bench`: a row a setting, as many columns as the terminal has room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dllm_core.evaluation.benchmark import Measurement

GAP = 2  # columns of the terminal between two of the table
Value = Callable[["Measurement"], str]

RATES: dict[str, Value] = {
    "tokens/s": lambda each: f"{each.stats.tokens_per_second:,.1f}",
    "tok/fwd": lambda each: f"{each.stats.tokens_per_forward:.2f}",
    "fwd/s": lambda each: f"{each.forwards_per_second:,.1f}",
}
COUNTS: dict[str, Value] = {
    "tokens": lambda each: f"{each.stats.tokens:,}",
    "forwards": lambda each: f"{each.stats.forward_passes:,}",
    "positions": lambda each: f"{each.stats.positions_processed:,}",
    "logit rows": lambda each: f"{each.stats.logit_rows:,}",
    "syncs": lambda each: f"{each.stats.host_syncs:,}",
}

LEAST_TELLING = ("fwd/s", "tok/fwd", "ratio", "right")


def columns(found: Sequence[Measurement]) -> dict[str, Value]:
    """Every column that says something of these measurements, by its heading."""
    first = found[0].stats.tokens_per_second
    speedup: dict[str, Value] = {"ratio": lambda each: f"{each.stats.tokens_per_second / first:.2f}x" if first else "-"}
    right: dict[str, Value] = {}
    if any(each.answered for each in found):
        right = {"right": lambda each: f"{100 * each.accuracy:.1f}%" if each.answered else "-"}
    return RATES | speedup | right | COUNTS


def header(found: Sequence[Measurement]) -> list[str]:
    """The headings of all columns, that of the numbers in the picture first."""
    return ["#", "setting", *columns(found)]


def cells_of(measurement: Measurement, found: Sequence[Measurement]) -> list[str]:
    """One row, with every column."""
    number = found.index(measurement) + 1
    return [str(number), measurement.cell.label, *(value(measurement) for value in columns(found).values())]


def columns_for(found: Sequence[Measurement], width: int) -> dict[str, Value]:
    """The columns that a terminal of so many columns has room for beside the settings.

    The counts stand there where every setting fits on one line; the least telling rates go where one of its words would
    be broken.
    """
    shown = columns(found)
    labels = [each.cell.label for each in found]
    whole, word = max(map(len, labels)), max(len(word) for label in labels for word in label.split())
    number = len(str(len(found))) + GAP
    for setting, least in ((whole, COUNTS), *((word, [rate]) for rate in LEAST_TELLING)):
        taken = sum(GAP + max(len(name), *(len(value(each)) for each in found)) for name, value in shown.items())
        if number + max(setting, len("setting")) + taken <= width:
            break
        shown = {name: value for name, value in shown.items() if name not in least}
    return shown


def table(found: Sequence[Measurement], width: int) -> Table:
    """For a terminal of so many columns."""
    shown = columns_for(found, width)
    built = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    built.add_column("#", justify="right", style="dim", no_wrap=True)
    built.add_column("setting", overflow="fold", ratio=1)
    for name in shown:
        built.add_column(name, justify="right", no_wrap=True)
    best = max(each.stats.tokens_per_second for each in found)
    for number, each in enumerate(found, start=1):
        style = "bold" if each.stats.tokens_per_second == best and len(found) > 1 else ""
        built.add_row(str(number), Text(each.cell.label), *(value(each) for value in shown.values()), style=style)
    return built
