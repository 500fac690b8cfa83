"""The live view: a canvas on the terminal while it is generated.

Shapes: B rows, L length of the canvas.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.live import Live
from rich.text import Text

from dllm_core.display.text import (
    Age,
    Glyphs,
    TokenText,
    canvas_text,
    fold,
    glyphs_for,
    progress_text,
    shown_as,
    window,
)

if TYPE_CHECKING:
    import torch
    from rich.console import Console, ConsoleOptions, RenderResult

    from dllm_core.samplers.output import Step

FRAMES_PER_SECOND = 20
LARGEST_OVERHEAD = 0.02  # share of the time that drawing may take
CAPTION_LINES = 3
SHORTEST_ROW = 4  # lines: its caption, two of its canvas, a blank one


@dataclass(frozen=True)
class Row:
    """One row of the canvas, as it is shown.

    Args:
        caption: text above it, the prompt; empty: none.
        start, stop: the positions that are shown: the completion, or all of a text with blanks.
    """

    caption: str
    start: int
    stop: int


class LiveView:
    """Draws a canvas while it is generated; erased when the context ends, so that only the result stays.

    Between two frames it reads no tensor, so a GPU is waited for only when a frame is drawn, and frames are spaced so
    that drawing takes at most 2% of the time.

    Args:
        console: where to draw.
        rows: what to show of each row of the canvas.
        canvas: (B, L) int64, as it is before the first step.
        tokens: gives the text of tokens.
        mask_id, special_ids: the ids that are shown as marks.
        steps: how many steps there will be, where that is known.
        blocks: how many blocks there are, where that is known.
        pause: for demonstrations: draw every step, and wait so many seconds after it ...
        pauses: ... until so many seconds were waited in all.

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
        pause: float = 0.0,
        pauses: float = 0.0,
    ) -> None:
        self._live = Live(console=console, transient=True, auto_refresh=False, vertical_overflow="crop")
        self._console = console
        self._rows = rows
        self._ids: list[list[int]] = canvas.tolist()
        self._ages = [[int(Age.SETTLED if token == mask_id else Age.GIVEN) for token in row] for row in self._ids]
        self._fresh = canvas != canvas  # (B, L) bool, committed since the last frame: nothing yet
        self._tokens = tokens
        self._mask_id, self._special_ids = mask_id, frozenset(special_ids)
        self._masked_at_first = max(self._masked_now(), 1)
        self._steps, self._blocks = steps, blocks
        self._pause, self._pauses = pause, pauses
        self._paused = 0.0
        self._next_frame = 0.0
        self._parts: list[str] = []

    def __enter__(self) -> LiveView:
        self._began = time.perf_counter()
        self._live.start()
        self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, step: Step) -> None:
        """Take note of a step, and draw it where a frame is due."""
        self._fresh |= step.committed
        now = time.perf_counter()
        slowly = self._paused < self._pauses
        if now < self._next_frame and not slowly:
            return
        self._take(step)
        self._draw()
        drawn = time.perf_counter()
        self._next_frame = drawn + max(1 / FRAMES_PER_SECOND, (drawn - now) / LARGEST_OVERHEAD)
        if slowly:
            time.sleep(self._pause)
            self._paused += self._pause

    def _take(self, step: Step) -> None:
        """Copy the canvas from the device, and let what was committed before the last frame grow old."""
        before, self._ids = self._ids, step.input_ids.tolist()
        for ages, fresh, old, new in zip(self._ages, self._fresh.tolist(), before, self._ids, strict=True):
            replaced = [was not in (self._mask_id, now) for was, now in zip(old, new, strict=True)]
            ages[:] = [_next_age(*place) for place in zip(ages, fresh, replaced, strict=True)]
        self._fresh &= False
        self._parts = self._said(step)

    def _said(self, step: Step) -> list[str]:
        elapsed = time.perf_counter() - self._began - self._paused
        committed = self._masked_at_first - self._masked_now()
        parts = [f"step {step.index + 1}{_of(self._steps)}", f"{elapsed:.1f} s"]
        if self._blocks != 1:
            parts.append(f"block {step.block + 1}{_of(self._blocks)}")
        return [
            *parts,
            f"{committed / (step.index + 1):.1f} tokens/step",
            f"{committed / max(elapsed, 1e-3):.0f} tokens/s",
        ]

    def _masked_now(self) -> int:
        return sum(self._shown(n, row).count(self._mask_id) for n, row in enumerate(self._rows))

    def _shown(self, number: int, row: Row) -> list[int]:
        return self._ids[number][row.start : row.stop]

    def _draw(self) -> None:
        self._live.update(self, refresh=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = max(console.size.height - 1, 3)
        glyphs = glyphs_for(console.encoding)
        yield from self._row_lines(console, options.max_width, height - 2, glyphs)
        done = 1 - self._masked_now() / self._masked_at_first
        yield progress_text(done=done, parts=self._parts, width=options.max_width, glyphs=glyphs)

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
        row = self._rows[number]
        text = canvas_text(
            self._shown(number, row),
            self._ages[number][row.start : row.stop],
            self._tokens,
            mask_id=self._mask_id,
            special_ids=self._special_ids,
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


def _next_age(age: int, is_fresh: bool, is_replaced: bool) -> int:
    if is_fresh:
        return Age.REPLACED if is_replaced else Age.FRESH
    if age == Age.REPLACED:
        return Age.RECENT
    return age if age == Age.GIVEN else min(age + 1, Age.SETTLED)


def _of(total: int | None) -> str:
    return "" if total is None else f"/{total}"
