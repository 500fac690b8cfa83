"""The bar of long work: on stderr, with the time left, and only where stderr is a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining

if TYPE_CHECKING:
    from rich.progress import Task
    from rich.text import Text


class TimeColumn(ProgressColumn):
    """The time left; the time taken where nobody knows how much there is to do."""

    max_refresh = 0.5  # seconds; figures that change more often cannot be read

    def __init__(self) -> None:
        super().__init__()
        self._elapsed, self._remaining = Elapsed(), Remaining()

    def render(self, task: Task) -> Text:
        return (self._elapsed if task.total is None else self._remaining).render(task)


class Tell(Protocol):
    """What is told how much is done; ``of`` is the total where another phase of the work begins, named ``now``."""

    def __call__(self, done: int, of: int | None = None, now: str | None = None) -> None: ...


@contextmanager
def progress_bar(what: str, total: int | None, *, at_once: bool = True) -> Iterator[Tell]:
    """Gives what is to be told how much is done; the bar is erased at the end.

    Args:
        total: how much there is to do; None: nobody knows, and the bar shows the time taken in place of that left.
        at_once: show it before anything is told; otherwise with the first that is.
    """
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda done, of=None, now=None: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", "dim", markup=False), BarColumn(), TimeColumn())
    progress = Progress(*columns, console=console, transient=True)
    progress.add_task(what, total=total)

    def tell(done: int, of: int | None = None, now: str | None = None) -> None:
        bar = progress.tasks[0]
        if now not in (None, bar.description):  # another phase has a speed of its own
            progress.remove_task(bar.id)
            progress.add_task(now, total=of)
        progress.update(progress.task_ids[0], completed=done)
        progress.start()  # does nothing where it has begun

    try:  # from here on: Ctrl-C while the bar is drawn first would leave the cursor hidden
        if at_once:
            progress.start()
        yield tell
    finally:
        progress.stop()
