"""Pictures of a trace: SVG of the decoding order without any library; PNG and GIF with Pillow.

Every picture is made of the same cells: one a token, in reading order, with the step that wrote it last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from dllm_core.display.text import shown_as
from dllm_core.display.trace import Change, Frame, Trace
from dllm_core.errors import DllmError

if TYPE_CHECKING:
    from PIL import Image

# Cividis (Nunez, Anderton, Renslow 2018): even in lightness, and the same with any colour vision.
CIVIDIS = (
    (0, 34, 78),
    (33, 62, 107),
    (76, 85, 108),
    (108, 110, 114),
    (141, 136, 120),
    (178, 164, 112),
    (218, 194, 93),
    (254, 232, 56),
)
PAPER, INK, MASKED = (255, 255, 255), (0, 0, 0), (225, 227, 231)
COLUMNS, CELL_WIDTH, LINE_HEIGHT, MARGIN = 72, 10, 24, 16
MOST_FRAMES = 120
SCALE = 16  # cells
MASK_MARK = "\N{LIGHT SHADE}"


class PicturesUnavailableError(DllmError, ImportError):
    """Pillow, which draws PNG and GIF pictures, is not installed."""


@dataclass(frozen=True)
class Cell:
    """A token in its place: column and line in character cells, and the share of the run at which it was written."""

    text: str
    column: int
    line: int
    share: float | None
    masked: bool


def shade(share: float) -> tuple[int, int, int]:
    """The colour of a share of the run: 0 dark blue, 1 yellow."""
    place = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    index = min(int(place), len(CIVIDIS) - 2)
    low, high = CIVIDIS[index], CIVIDIS[index + 1]
    return tuple(round(a + (b - a) * (place - index)) for a, b in zip(low, high, strict=True))


def ink_on(colour: Sequence[int]) -> tuple[int, int, int]:
    """Black or white, whichever is readable on a colour."""
    return INK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 130 else PAPER


def cells_after(trace: Trace, number: int, count: int | None = None) -> list[Cell]:
    """The cells of a row after its first ``count`` changes; None: of the result."""
    frames = _frames(trace, number)
    return _cells(trace, number, frames, len(frames) - 1 if count is None else count)


def _frames(trace: Trace, number: int) -> list[Frame]:
    """The canvases of a row, that before the first change included."""
    ids = trace.rows[number].ids
    return [Frame(Change(0, 0, [], [], []), ids, [None] * len(ids)), *trace.frames(number)]


def _cells(trace: Trace, number: int, frames: Sequence[Frame], count: int) -> list[Cell]:
    row, (_, ids, writers), (_, result, last_writers) = trace.rows[number], frames[count], frames[-1]
    texts = {start: text for start, _, text in row.pieces}
    within = {place for start, stop, _ in row.pieces for place in range(start, stop)}
    # Where tokens move, a place says nothing of what will stand there at last.
    moves = count < len(frames) - 1 and any(frame.change.inserted or frame.change.deleted for frame in frames)

    def text(place: int) -> str:
        if ids[place] == trace.mask_id:
            return MASK_MARK
        if ids[place] in trace.special_ids or not (moves or place in within):
            return ""
        return trace.vocabulary[ids[place]] if moves or ids[place] != result[place] else texts.get(place, "")

    # The colours span what is shown: an end of sequence, often written first, would leave the text one colour.
    shown = [last_writers[place] for place in within if last_writers[place] is not None] or [0]
    first, last = min(shown), max(shown)

    def share(place: int) -> float | None:
        return None if writers[place] is None else (writers[place] - first) / max(last - first, 1)

    stop = len(ids) if moves else min(max(within, default=row.start) + 1, len(ids))
    places = range(row.start, stop)
    return _laid_out([(text(place), share(place), ids[place] == trace.mask_id) for place in places])


def _laid_out(tokens: Sequence[tuple[str, float | None, bool]]) -> list[Cell]:
    """Tokens from left to right, broken at line breaks and at the edge."""
    cells, column, line = [], 0, 0
    for text, share, masked in tokens:
        for number, part in enumerate(shown_as(text, "utf-8").split("\n")):
            if number:
                column, line = 0, line + 1
            width = cell_len(part)
            if column and column + width > COLUMNS:
                column, line = 0, line + 1
            if width:
                cells.append(Cell(part, column, line, share, masked))
            elif part and cells:  # a mark that belongs on the character before it
                cells[-1] = replace(cells[-1], text=cells[-1].text + part)
            column += width
    return cells


def _with_scale(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, and below them what their colours mean."""
    line = max((cell.line for cell in cells), default=0) + 2
    steps = [Cell(" ", len("first ") + n, line, n / (SCALE - 1), False) for n in range(SCALE)]
    ends = ((0, "first"), (len("first ") + SCALE + 1, "last"))
    return [*cells, *steps, *(Cell(word, column, line, None, False) for column, word in ends)]


def order_svg(trace: Trace, number: int = 0) -> str:
    """The result of a row as SVG, each token on the colour of the step that wrote it."""
    cells = _with_scale(cells_after(trace, number))
    width, height = _size(cells)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        "<title>Decoding order: dark tokens were written first, light ones last</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<g font-family="ui-monospace, monospace" font-size="16" xml:space="preserve">',
    ]
    for cell in cells:
        x, y = MARGIN + cell.column * CELL_WIDTH, MARGIN + cell.line * LINE_HEIGHT
        colour, length = _colour(cell), cell_len(cell.text) * CELL_WIDTH
        fill, ink = ("#{:02x}{:02x}{:02x}".format(*value) for value in (colour, ink_on(colour)))
        parts.append(f'<rect x="{x}" y="{y}" width="{length}" height="{LINE_HEIGHT - 2}" fill="{fill}"/>')
        parts.append(
            f'<text x="{x}" y="{y + 16}" fill="{ink}" textLength="{length}" lengthAdjust="spacingAndGlyphs">'
            f"{escape(cell.text)}</text>"
        )
    return "\n".join([*parts, "</g>", "</svg>", ""])


def order_png(trace: Trace, path: Path, number: int = 0) -> None:
    """Write the picture of `order_svg` as PNG.

    Raises:
        PicturesUnavailableError: Pillow is not installed.
    """
    _check_pillow()
    cells = _with_scale(cells_after(trace, number))
    _painted(cells, _size(cells)).save(path, format="PNG")


def replay_gif(trace: Trace, path: Path, number: int = 0) -> None:
    """Write the replay of a row as GIF: at most 120 frames, the last one shown for two seconds.

    Raises:
        PicturesUnavailableError: Pillow is not installed.
    """
    _check_pillow()
    canvases = _frames(trace, number)
    total = len(canvases) - 1
    counts = sorted({round(n * total / MOST_FRAMES) for n in range(MOST_FRAMES + 1)})
    drawn = [_cells(trace, number, canvases, count) for count in counts]
    widths, heights = zip(*(_size(cells) for cells in drawn), strict=True)
    frames = [_painted(cells, (max(widths), max(heights))) for cells in drawn]
    frames[0].save(
        path, format="GIF", save_all=True, append_images=frames[1:], duration=[80] * (len(frames) - 1) + [2000], loop=0
    )


def _painted(cells: Sequence[Cell], size: tuple[int, int]) -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    for cell in cells:
        x, y = MARGIN + cell.column * CELL_WIDTH, MARGIN + cell.line * LINE_HEIGHT
        colour = _colour(cell)
        pen.rectangle([x, y, x + cell_len(cell.text) * CELL_WIDTH - 1, y + LINE_HEIGHT - 3], fill=colour)
        if not cell.masked:
            for place, character in enumerate(cell.text):
                offset = cell_len(cell.text[:place]) * CELL_WIDTH
                pen.text((x + offset + CELL_WIDTH / 2, y + 4), character, ink_on(colour), font, anchor="ma")
    return image


def _colour(cell: Cell) -> tuple[int, int, int]:
    if cell.masked:
        return MASKED
    return PAPER if cell.share is None else shade(cell.share)


def _size(cells: Sequence[Cell]) -> tuple[int, int]:
    lines = max((cell.line for cell in cells), default=0) + 1
    columns = max((cell.column + cell_len(cell.text) for cell in cells), default=1)
    return 2 * MARGIN + columns * CELL_WIDTH, 2 * MARGIN + lines * LINE_HEIGHT


def _check_pillow() -> Any:
    try:
        import PIL.Image as found
    except ImportError as error:
        raise PicturesUnavailableError(
            "PNG and GIF pictures are drawn by Pillow, which is not installed: pip install pillow; "
            "--html and --svg need nothing"
        ) from error
    return found
