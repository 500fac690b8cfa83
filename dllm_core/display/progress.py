"""The bar of long work: on stderr, with the time left, and only where stderr is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Gives what is to be told how much is done; the bar is erased at the end.

    Args:
        total: how much there is to do; None: nobody knows, and the bar shows the time taken in place of that left.
    """
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda done: None
        return
    time = TimeElapsedColumn() if total is None else TimeRemainingColumn()
    columns = (SpinnerColumn(), TextColumn("[dim]{task.description}"), BarColumn(), time)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
