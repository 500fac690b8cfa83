"""`dllm visualize`: replay or export a trace of `dllm run --trace`, or draw a training's curves. No torch here."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import numpy as np
from rich.console import Console

from dllm_core.cli import curves
from dllm_core.config import at_least
from dllm_core.display.page import change_data, page
from dllm_core.display.text import harmless
from dllm_core.display.trace import Trace, read_trace
from dllm_core.errors import OptionError

if TYPE_CHECKING:
    from dllm_core.display.live import LiveView
    from dllm_core.display.trace import Change


class TracedEdit(NamedTuple):
    """An edit of a trace; its fields are those of `samplers.output.Edit`."""

    kind: str
    position: int
    old: int | None
    new: int | None


class Shown(NamedTuple):
    """A step as the live view reads it; arrays of NumPy serve as well as tensors."""

    index: int
    block: int
    input_ids: np.ndarray  # (1, L)
    committed: np.ndarray  # (1, L) bool
    confidence: np.ndarray  # (1, L) float32
    edits: list[list[TracedEdit]] | None = None


SECONDS = 6.0  # that a replay takes
EPILOG = """\b
Examples:
  dllm run "reverse planet" --trace planet.trace
  dllm visualize planet.trace                      replay it here
  dllm visualize planet.trace --html planet.html --svg planet.svg
  dllm visualize out --png curves.png              of a training: loss, learning rate, gradient norm
"""


@click.command(
    "visualize", epilog=EPILOG, short_help="Replay a trace.", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="One page that needs nothing beside it.")
@click.option("--gif", type=click.Path(path_type=Path), metavar="FILE", help="The replay as a moving picture (Pillow).")
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="The decoding order, or the curves.")
@click.option("--png", type=click.Path(path_type=Path), metavar="FILE", help="The same as PNG (Pillow).")
@click.option("--row", type=int, default=1, show_default=True, help="Which answer of the trace; --html has all.")
@click.option("--seconds", type=float, default=SECONDS, show_default=True, help="How long the replay takes.")
@click.option("--json", "as_json", is_flag=True, help="The trace as JSON: every change of every row; or the log.")
def command(
    trace: Path,
    html: Path | None,
    gif: Path | None,
    svg: Path | None,
    png: Path | None,
    row: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Replay TRACE, a file that 'dllm run --trace TRACE' wrote, or export it.

    Where TRACE is the output folder of a training, or the trainer_state.json in it, its curves are drawn.
    """
    at_least("--row", row, 1)
    at_least("--seconds", seconds, 0)
    exports = [("--html", html, _html), ("--gif", gif, _gif), ("--svg", svg, _svg), ("--png", png, _png)]
    if curves.is_training(trace):
        wanted = {flag: path for flag, path, _ in exports if path is not None}
        for path in curves.visualize(trace, wanted, as_json=as_json):
            print(f"wrote {path}", file=sys.stderr)
        return
    found = read_trace(trace)
    if row > len(found.rows):
        raise OptionError(f"--row {row}: the trace holds {len(found.rows)} answers; give 1 to {len(found.rows)}")
    for flag, path, export in exports:
        if path is not None:
            _write(flag, path, export, found, row - 1)
    if as_json:
        print(json.dumps(as_data(found), allow_nan=False, default=str))
    elif not any(path for _, path, _ in exports):
        replay(found, row - 1, seconds)


def _write(flag: str, path: Path, export: Callable[[Trace, Path, int], None], trace: Trace, row: int) -> None:
    try:
        export(trace, path, row)
    except OSError as error:
        reason = error.strerror or error
        raise OptionError(f"{flag} {path} cannot be written: {reason}; give a file in a folder") from error
    print(f"wrote {path}", file=sys.stderr)


def _html(trace: Trace, path: Path, row: int) -> None:
    path.write_text(page(trace), encoding="utf-8")


def _gif(trace: Trace, path: Path, row: int) -> None:
    from dllm_core.display.order import replay_gif

    replay_gif(trace, path, row)


def _svg(trace: Trace, path: Path, row: int) -> None:
    from dllm_core.display.order import order_svg

    path.write_text(order_svg(trace, row), encoding="utf-8")


def _png(trace: Trace, path: Path, row: int) -> None:
    from dllm_core.display.order import order_png

    order_png(trace, path, row)


def replay(trace: Trace, number: int, seconds: float) -> None:
    """Show a row of a trace on the terminal as it was written, and leave its text on stdout."""
    row, console = trace.rows[number], Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        frames = list(trace.frames(number))
        moves = any(frame.change.inserted or frame.change.deleted for frame in frames)
        stop = len(row.ids) if moves else max([len(row.ids), *(len(frame.ids) for frame in frames)])
        with _view(trace, number, console, stop) as view:
            before = row.ids
            for change, ids, _ in frames:
                view.show(_edit_step(change, before, ids) if moves else _step(change, ids, trace.mask_id))
                before = ids
                time.sleep(seconds / len(frames))
    print(harmless(row.text, sys.stdout))


def _view(trace: Trace, number: int, console: Console, stop: int) -> LiveView:
    from dllm_core.display.live import LiveView, Row
    from dllm_core.display.text import TokenText

    row = trace.rows[number]
    return LiveView(
        console,
        [Row(row.caption, row.start, stop)],
        np.array([row.ids]),
        TokenText(lambda ids: "".join(trace.vocabulary[token] for token in ids)),
        mask_id=trace.mask_id,
        special_ids=trace.special_ids,
        steps=row.steps,
        overhead=1.0,  # nothing else is to be done
    )


def _step(change: Change, ids: list[int], mask_id: int) -> Shown:
    """A step that leaves every token in its place."""
    fresh, sure = np.zeros((1, len(ids)), dtype=bool), np.full((1, len(ids)), np.nan)
    fresh[0, change.positions] = [token != mask_id for token in change.tokens]
    sure[0, change.positions] = change.confidence
    return Shown(change.step, change.block, np.array([ids]), fresh, sure)


def _edit_step(change: Change, before: list[int], ids: list[int]) -> Shown:
    """A step of a run that inserts and deletes."""
    nothing, unknown = np.zeros((1, len(ids)), dtype=bool), np.full((1, len(ids)), np.nan)
    return Shown(change.step, change.block, np.array([ids]), nothing, unknown, [edits_of(change, before)])


def edits_of(change: Change, before: list[int]) -> list[TracedEdit]:
    """The edits of a change, in order.

    Args:
        before: the canvas that they were made in.
    """
    found = [
        TracedEdit("substitute", place, before[place], new)
        for place, new in zip(change.positions, change.tokens, strict=True)
    ]
    found += [TracedEdit("delete", place, before[place], None) for place in change.deleted]
    found += [TracedEdit("insert", place, None, new) for place, new in change.inserted]
    return sorted(found, key=attrgetter("position"))


def as_data(trace: Trace) -> dict[str, object]:
    """A trace as one object for JSON: what was asked for, and every change of every row."""
    rows = [
        {
            "caption": row.caption,
            "text": row.text,
            "steps": row.steps,
            "start": row.start,
            "ids": row.ids,
            "changes": [change_data(change) for change in trace.changes(number)],
        }
        for number, row in enumerate(trace.rows)
    ]
    return {"about": trace.about, "mask_id": trace.mask_id, "vocabulary": trace.vocabulary, "rows": rows}
