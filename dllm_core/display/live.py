"""The live view: a canvas on the terminal while it is generated.

Shapes: B rows, L length of the canvas.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from dllm_core.display.cells import Cells, edited, grown_older, growth, rewritten
from dllm_core.display.frames import Frames
from dllm_core.display.text import (
    Glyphs,
    TokenText,
    canvas_text,
    fold,
    glyphs_for,
    legend_text,
    progress_text,
    shown_as,
    window,
)

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from dllm_core.samplers.output import Edit, Step

FRAMES_PER_SECOND = 20
LARGEST_OVERHEAD = 0.015  # share of the time that frames may take; the notes of steps come on top
CAPTION_LINES = 3
SHORTEST_ROW = 4  # lines: its caption, two of its canvas, a blank one
LOWEST_WITH_LEGEND = 10  # lines


@dataclass(frozen=True)
class Row:
    """One row of the canvas, as it is shown.

    Args:
        caption: text above it, the prompt; empty: none.
        start, stop: the positions that are shown: the completion, or all of a text with blanks. What is inserted and
            deleted moves ``stop``.
        boundaries: positions where a block begins, but for the first.
    """

    caption: str
    start: int
    stop: int
    boundaries: tuple[int, ...] = ()


class LiveView:
    """Draws a canvas while it is generated; erased when the context ends, so that only the result stays.

    Between two frames it reads no tensor, so a GPU is waited for only when a frame is drawn, and frames are spaced so
    that drawing takes at most 1.5% of the time.

    Args:
        console: where to draw.
        rows: what to show of each row of the canvas.
        canvas: (B, L) int64, as it is before the first step.
        tokens: gives the text of tokens.
        mask_id, special_ids: the ids that are shown as marks.
        steps: how many steps there will be, where that is known.
        blocks: how many blocks there are, where that is known.
        forward_passes: says how many there were by now; None: a step is counted as one.
        pause: for demonstrations: draw every step, and wait so many seconds after it ...
        pauses: ... until so many seconds were waited in all.
        overhead: the largest share of the time that drawing may take.

    Example::

        with LiveView(console, rows, canvas, TokenText(tokenizer.decode), mask_id=mask, special_ids=ends) as view:
            while not state.finished:
                view.show(sampler.step(state))
    """

    def __init__(
        self,
        console: Console,
        rows: Sequence[Row],
        canvas: torch.Tensor,
        tokens: TokenText,
        *,
        mask_id: int,
        special_ids: Collection[int],
        steps: int | None = None,
        blocks: int | None = None,
        forward_passes: Callable[[], int] | None = None,
        pause: float = 0.0,
        pauses: float = 0.0,
        overhead: float = LARGEST_OVERHEAD,
    ) -> None:
        self._frames = Frames(console)
        self._console = console
        self._rows = rows
        self._mask_id, self._special_ids = mask_id, frozenset(special_ids)
        self._cells = [Cells.at_first(row, mask_id) for row in canvas.tolist()]
        self._stops = [row.stop for row in rows]
        self._fresh: torch.Tensor | None = None  # (B, L) bool, committed since the last frame
        self._surety: torch.Tensor | None = None  # (B, L) float32, of those
        self._edits: list[Sequence[Sequence[Edit]]] = []  # since the last frame, step by step
        self._edit_count = 0
        self._seen: set[int] = set()
        self._tokens = tokens
        self._steps, self._blocks = steps, blocks
        self._forward_passes = forward_passes
        masked = self._masked_now()
        self._has_masks, self._masked_at_first = masked > 0, max(masked, 1)
        self._share = 0.0
        self._began = time.perf_counter()
        self._pause, self._pauses = pause, pauses
        self._overhead = overhead
        self._paused = 0.0
        self._next_frame = 0.0
        self._parts: list[str] = []

    def __enter__(self) -> LiveView:
        self._frames.__enter__()
        self._draw_on_time()
        return self

    def __exit__(self, *error: object) -> None:
        self._frames.__exit__(*error)

    def show(self, step: Step) -> None:
        """Take note of a step, and draw it where a frame is due."""
        self._note(step)
        now = time.perf_counter()
        slowly = self._paused < self._pauses
        if now < self._next_frame and not slowly:
            return
        self._take(step)
        self._draw_on_time()
        if slowly:
            time.sleep(self._pause)
            self._paused += self._pause

    def _note(self, step: Step) -> None:
        """Keep what the canvas will not tell later; nothing is copied from the device and nothing decoded."""
        if step.edits is not None:
            self._edits.append(step.edits)
            return
        if self._fresh is None or self._fresh.shape != step.committed.shape:
            self._fresh, self._surety = step.committed, step.confidence
            return
        self._fresh = self._fresh | step.committed
        self._surety = _chosen(step.committed, step.confidence, self._surety)

    def _take(self, step: Step) -> None:
        """Let what was written before the last frame grow old, and take in what was written since."""
        self._cells = [grown_older(cells) for cells in self._cells]
        for edits in self._edits:
            self._cells = [edited(*row, self._mask_id) for row in zip(self._cells, edits, strict=True)]
            self._stops = [stop + growth(own) for stop, own in zip(self._stops, edits, strict=True)]
            self._edit_count += sum(map(len, edits))
        if self._fresh is not None:
            now = (step.input_ids.tolist(), self._fresh.tolist(), self._surety.tolist())
            rows = zip(self._cells, *now, strict=True)
            self._cells = [rewritten(*row, self._mask_id) for row in rows]
        self._edits, self._fresh = [], None
        self._seen.update(*(cells.ages for cells in self._cells))
        self._parts = self._said(step)

    def _said(self, step: Step) -> list[str]:
        elapsed = time.perf_counter() - self._began - self._paused
        committed = max(self._masked_at_first - self._masked_now(), 0)
        self._share = committed / self._masked_at_first if self._has_masks else (step.index + 1) / (self._steps or 1)
        parts = [f"step {step.index + 1}{_of(self._steps)}", f"{elapsed:.1f} s"]
        if step.edits is not None:
            return [*parts, f"{self._edit_count} edits", f"{self._edit_count / (step.index + 1):.1f} edits/step"]
        if self._blocks != 1:
            parts.append(f"block {step.block + 1}{_of(self._blocks)}")
        passes, what = (self._forward_passes(), "forward") if self._forward_passes else (step.index + 1, "step")
        return [
            *parts,
            f"{committed / max(passes, 1):.1f} tokens/{what}",
            f"{committed / max(elapsed, 1e-3):.0f} tokens/s",
        ]

    def _masked_now(self) -> int:
        return sum(self._shown(number).ids.count(self._mask_id) for number in range(len(self._rows)))

    def _shown(self, number: int) -> Cells:
        """The positions of a row that are shown, with the deleted tokens among them."""
        cells, row, stop = self._cells[number], self._rows[number], self._stops[number]
        live = cells.live
        first = live[row.start] if row.start < len(live) else len(cells.ids)
        last = live[stop] if stop < len(live) else len(cells.ids)
        return Cells(cells.ids[first:last], cells.ages[first:last])

    def _draw_on_time(self) -> None:
        """Draw a frame; the next one is due when this one has been paid for."""
        began = time.perf_counter()
        self._draw()
        drawn = time.perf_counter()
        self._next_frame = drawn + max(1 / FRAMES_PER_SECOND, (drawn - began) / self._overhead)

    def _draw(self) -> None:
        self._frames.draw(self.lines())

    def lines(self) -> list[Text]:
        """The lines of the frame now, none longer than the terminal is wide."""
        console = self._console
        height = max(console.size.height - 1, 3)
        glyphs, width = glyphs_for(console.encoding), console.size.width
        legend = [legend_text(self._seen, width)] if height >= LOWEST_WITH_LEGEND else []
        lines = [
            *self._row_lines(console, width, height - 2 - len(legend), glyphs),
            progress_text(done=self._share, parts=self._parts, width=width, glyphs=glyphs),
            *legend,
        ]
        for line in lines:
            line.truncate(width, overflow="crop")
        return lines

    def _row_lines(self, console: Console, width: int, height: int, glyphs: Glyphs) -> Iterator[Text]:
        """The rows that fit into `height` lines, each above a blank line."""
        count = min(len(self._rows), max(height // SHORTEST_ROW, 1))
        left_out = len(self._rows) - count if height > 1 else 0
        height -= 1 if left_out else 0
        for number in range(count):
            share = (height + 1) // (count - number) - 1  # what the rows before did not use goes to those after
            lines = self._one_row(number, console, width, max(share, 1), glyphs)
            yield from lines
            yield Text()
            height -= len(lines) + 1
        if left_out:
            yield Text(f"{glyphs.ellipsis} and {left_out} more", "dim", no_wrap=True, overflow="crop")

    def _one_row(self, number: int, console: Console, width: int, height: int, glyphs: Glyphs) -> list[Text]:
        row, cells = self._rows[number], self._shown(number)
        text = canvas_text(
            cells.ids,
            cells.ages,
            self._tokens,
            mask_id=self._mask_id,
            special_ids=self._special_ids,
            boundaries={place - row.start for place in row.boundaries},
            glyphs=glyphs,
            encoding=console.encoding,
        )
        caption = _caption(row.caption, console, width, min(CAPTION_LINES, height - 1), glyphs)
        return caption + window(fold(text, width), height - len(caption))


def _caption(caption: str, console: Console, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    if not caption or height < 1:
        return []
    text = Text(f"{glyphs.prompt} {shown_as(caption.strip(), console.encoding)}", "dim")
    lines = list(text.wrap(console, width, overflow="fold"))
    if len(lines) > height:
        lines = lines[:height]
        lines[-1].truncate(max(width - len(glyphs.ellipsis), 1))
        lines[-1].append(glyphs.ellipsis)
    return lines


def _chosen(where: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """``new`` where it is true, else ``old``; replays of traces have NumPy's arrays."""
    return np.where(where, new, old) if isinstance(new, np.ndarray) else new.where(where, old)


def _of(total: int | None) -> str:
    return "" if total is None else f"/{total}"
