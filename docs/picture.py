"""Records `dllm run` in a real terminal and draws what was on its screen as one animated SVG.

python docs/picture.py                        every picture of `PICTURES` and `ORDER`: all that the README and docs show
python docs/picture.py FILE.svg run "..."     another command line

Needs a POSIX system. Start-up is shortened to one frame; everything else keeps its time. A viewer that does not animate
shows the last screen.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from xml.sax.saxutils import escape

from rich.color import blend_rgb
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI as THEME
from rich.text import Text

IMAGES = Path(__file__).parent / "images"
PICTURES = {"run.svg": ["run"]}  # file in `IMAGES` -> the arguments of dllm that it shows
ORDER = {"order.svg": ["run", "solve .4.. ..1. .3.. 4..3"]}  # ... whose decoding order it shows
COLUMNS, LINES = 80, 24
CELL_WIDTH, LINE_HEIGHT, MARGIN = 8.4, 18, 16
SHORTEST, LONGEST, LAST = 0.02, 1.0, 4.0  # seconds that a screen is shown
CONSOLE = Console(width=COLUMNS, color_system="truecolor", force_terminal=True)
CONTROL = re.compile(r"(\r|\n|\x1b\[(?:\?25[lh]|\d*A|2K|[KJ]))")
Frame = tuple[float, tuple[str, ...]]  # seconds since the start, the lines of the screen with their colour codes


def record(arguments: list[str]) -> Iterator[tuple[float, str]]:
    """Run `dllm` on a pseudo-terminal; (seconds, text) as it arrives."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
        os.execvp("dllm", ["dllm", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    began = time.perf_counter()
    pending = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not data:
            break
        pending += data
        text = pending.decode(errors="ignore")
        pending = pending[len(text.encode()) :]
        yield time.perf_counter() - began, text
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit("dllm failed: " + " ".join(arguments))


def screens(chunks: Iterator[tuple[float, str]]) -> Iterator[Frame]:
    """What the screen showed: the program writes whole lines, each over the last, so lines are all there is to keep."""
    lines, row, rest, is_new = [""], 0, "", False  # whether what is written next begins the line anew
    for seconds, text in chunks:
        *parts, rest = CONTROL.split(rest + text)
        for part in parts:
            if part == "\r":
                is_new = True
            elif part == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
                is_new = True
            elif part.endswith("A") and part.startswith("\x1b["):
                row = max(row - int(part[2:-1] or 1), 0)
            elif part in ("\x1b[2K", "\x1b[K", "\x1b[J"):
                lines[row:] = lines[row : row + 1] if part.endswith("J") else lines[row:]
                lines[row] = "" if is_new or part == "\x1b[2K" else lines[row]
            elif part and "?25" not in part:
                lines[row] = part if is_new else lines[row] + part
                is_new = False
        yield seconds, tuple(lines)
    lines[row] += rest
    yield seconds, tuple(lines)


def timed(frames: list[Frame]) -> list[tuple[float, tuple[str, ...]]]:
    """(seconds that it is shown, screen), without repetitions and without screens that are only half written."""
    pauses = [after[0] - before[0] for before, after in pairwise(frames)] + [LAST]
    shown: list[tuple[float, tuple[str, ...]]] = []
    for pause, (_, screen) in zip(pauses, frames, strict=True):
        if shown and shown[-1][1] == screen:
            shown[-1] = (shown[-1][0] + pause, screen)
        elif pause >= SHORTEST:
            shown.append((pause, screen))
    return [(min(pause, LONGEST), screen) for pause, screen in shown[:-1]] + [(LAST, shown[-1][1])]


def rows(screen: tuple[str, ...]) -> list[Text]:
    """The lines of a screen, those that are too long folded at its edge."""
    texts = [Text.from_ansi(line) for line in screen]
    return [part for text in texts for part in text.divide(range(COLUMNS, len(text), COLUMNS))]


def drawn(text: Text, row: int) -> str:
    """One line of the screen as SVG: what stands behind its characters, and these."""
    column, boxes, spans = 0, [], []
    top = MARGIN + row * LINE_HEIGHT
    for segment in text.render(CONSOLE):
        style, x = segment.style or Style(), MARGIN + column * CELL_WIDTH
        if style.bgcolor:
            size = f'width="{segment.cell_length * CELL_WIDTH:.1f}" height="{LINE_HEIGHT}"'
            fill = style.bgcolor.get_truecolor(THEME, foreground=False).hex
            boxes.append(f'<rect x="{x:.1f}" y="{top}" {size} fill="{fill}"/>')
        if segment.text.strip():
            spans.append(f'<tspan x="{x:.1f}" {look(style)}>{escape(segment.text)}</tspan>')
        column += segment.cell_length
    if not spans:
        return ""
    return f'{"".join(boxes)}<text y="{top + 0.75 * LINE_HEIGHT:.1f}" xml:space="preserve">{"".join(spans)}</text>'


def look(style: Style) -> str:
    """SVG attributes of a terminal style."""
    colour = style.color.get_truecolor(THEME) if style.color else THEME.foreground_color
    if style.dim:
        colour = blend_rgb(colour, THEME.background_color, 0.45)
    marks = (
        (style.bold, 'font-weight="bold"'),
        (style.italic, 'font-style="italic"'),
        (style.underline, 'text-decoration="underline"'),
        (style.strike, 'text-decoration="line-through"'),
    )
    return " ".join([f'fill="{colour.hex}"', *(mark for is_set, mark in marks if is_set)])


def runs(lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """(first frame, frame after the last, line) of each stretch of frames in which a row stays the same."""
    start = 0
    for stop in range(1, len(lines) + 1):
        if stop == len(lines) or lines[stop] != lines[start]:
            yield start, stop, lines[start]
            start = stop


def animated(frames: list[tuple[float, tuple[str, ...]]]) -> str:
    """Every line that was ever on the screen, each visible in its time."""
    screens_drawn = [[drawn(text, row) for row, text in enumerate(rows(screen))] for _, screen in frames]
    height = max(map(len, screens_drawn))
    ends = [0.0, *accumulate(pause for pause, _ in frames)]
    rules, groups = [], []
    for row in range(height):
        lines = [screen[row] if row < len(screen) else "" for screen in screens_drawn]
        for start, stop, line in runs(lines):
            if not line:
                continue
            name = f"t{len(groups)}"
            groups.append(f'<g id="{name}">{line}</g>')
            last = "#" + name + "{visibility:visible}" if stop == len(frames) else ""
            times = keyframes(100 * ends[start] / ends[-1], 100 * ends[stop] / ends[-1])
            rules.append(f"@keyframes {name}{{{times}}}#{name}{{animation-name:{name}}}{last}")
    return page(round(2 * MARGIN + COLUMNS * CELL_WIDTH), 2 * MARGIN + height * LINE_HEIGHT, ends[-1], rules, groups)


def page(width: int, height: int, seconds: float, rules: list[str], groups: list[str]) -> str:
    """The SVG file."""
    newline = "\n"
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>dllm run</title>
<style>
text{{font:14px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre}}
g{{visibility:hidden;animation:{seconds:.2f}s step-end infinite}}
{newline.join(rules)}
</style>
<rect width="100%" height="100%" rx="8" fill="{THEME.background_color.hex}"/>
{newline.join(groups)}
</svg>
"""


def keyframes(start: float, stop: float) -> str:
    """Visible between two percentages of the time."""
    before = "0%{visibility:hidden}" if start > 0 else ""
    after = f"{stop:.3f}%{{visibility:hidden}}" if stop < 100 else ""
    return f"{before}{start:.3f}%{{visibility:visible}}{after}"


def draw(target: Path, command: list[str]) -> None:
    """Record a command line into a file."""
    prompt = ((0.0, f"\x1b[1m$ {shlex.join(['dllm', *command])}\x1b[0m\n"),)
    frames = timed([*screens(part for source in (prompt, record(command)) for part in source)])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(animated(frames), encoding="utf-8")


def draw_order(target: Path, command: list[str]) -> None:
    """Draw the decoding order of a command's trace into a file."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "run.trace"
        subprocess.run(["dllm", *command, "--trace", trace], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["dllm", "visualize", trace, "--svg", target], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        draw(Path(sys.argv[1]), sys.argv[2:] or ["run"])
    else:
        for name, command in PICTURES.items():
            draw(IMAGES / name, command)
        for name, command in ORDER.items():
            draw_order(IMAGES / name, command)
