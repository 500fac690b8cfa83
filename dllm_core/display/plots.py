"""Pictures of figures: quality against speed, and training curves; as PNG, SVG, or a page with the figures beside.

Drawn with matplotlib, which is imported only here and only when something is drawn. Whoever sees no colours tells
series by their markers and lines, and every point of a Pareto picture has a number that the legend explains. The
colours are those of Okabe and Ito, which differ under every kind of colour blindness.
"""

from __future__ import annotations

import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_core.errors import DataError, DllmError, OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".html")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
LINES = ("-", "--", "-.", ":")
INK, FAINT = "#222222", "#8a8a8a"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "dllm",  # the same file from the same figures
}
WIDEST_RATIO = 8  # of a linear axis; above, it is logarithmic
LABEL_HEIGHT, LABEL_WIDTH = 11.0, 14.0  # of a number beside a point, in points
STATE_FILE = "trainer_state.json"
# What the trainer logs, by panel: the keys, and what a line of each is called.
PANELS: dict[str, dict[str, str]] = {
    "loss": {"loss": "training", "eval_loss": "evaluation"},
    "learning rate": {"learning_rate": ""},
    "gradient norm": {"grad_norm": ""},
}

TrainingLog = Sequence[Mapping[str, float]]


class PlotsUnavailableError(DllmError, ImportError):
    """matplotlib is not installed."""


@dataclass(frozen=True)
class Point:
    """One thing that was measured.

    Args:
        label: what it is, for the legend.
        series: points of one series share a marker and a colour.
        x, y: in the units of the axes.
        y_error: the standard error of `y`, drawn as a bar; 0 for none.
    """

    label: str
    series: str
    x: float
    y: float
    y_error: float = 0.0


@dataclass(frozen=True)
class Names:
    """What a picture and its axes are called.

    Args:
        most: the largest value that y can have, for instance 100 percent; None: there is none.
        fewer: a smaller x is better; the axis runs from right to left.
    """

    title: str
    x: str
    y: str
    most: float | None = None
    fewer: bool = False


def check(path: Path) -> None:
    """Raise at once what drawing to `path` would raise in the end.

    Raises:
        OptionError: the ending is none of `FORMATS`.
        PlotsUnavailableError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise OptionError(f"a picture's name must end in {', '.join(FORMATS)}; got {path.name!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PlotsUnavailableError(
            "pictures need matplotlib, which is not installed; run: pip install 'dllm-core[plots]'"
        ) from error


def front(points: Sequence[Point], *, fewer: bool = False) -> list[Point]:
    """The points that no other beats in both x and y, the best x last; `fewer`: a smaller x is better."""
    sign = 1 if fewer else -1
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (sign * point.x, -point.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best[::-1]


def pareto(points: Sequence[Point], names: Names) -> Figure:
    """Points that are better the further up and right they stand; a line joins those that none beats in both.

    Raises:
        OptionError: there is no point.
    """
    if not points:
        raise OptionError("there is nothing to draw; measure at least one setting")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    series = list(dict.fromkeys(point.series for point in points))
    longest = max(len(point.label) for point in points)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4 + 0.075 * longest, max(4.4, 0.6 + 0.25 * len(points))), layout="constrained")
        axes = figure.subplots()
        edge = front(points, fewer=names.fewer)
        axes.plot([p.x for p in edge], [p.y for p in edge], color=FAINT, linestyle=":", zorder=1, label="_front")
        marks = [_mark(axes, point, series.index(point.series), names.most) for point in points]
        _dress(axes, points, names)
        labels = [f"{number}  {point.label}" for number, point in enumerate(points, start=1)]
        figure.legend(marks, labels, loc="outside right upper", frameon=False, handletextpad=0.4)
        _number(axes, points)
    return figure


def _mark(axes: Axes, point: Point, number: int, most: float | None) -> object:
    """Draw one point; returns what stands for it in the legend."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    if point.y_error:
        above = point.y_error if most is None else min(point.y_error, most - point.y)
        yerr = [[point.y_error], [above]]
        axes.errorbar(point.x, point.y, yerr=yerr, color=colour, elinewidth=1, capsize=2, alpha=0.6, zorder=2)
    return axes.scatter(
        point.x, point.y, s=64, color=colour, marker=marker, edgecolors="white", linewidths=0.8, zorder=3
    )


def _dress(axes: Axes, points: Sequence[Point], names: Names) -> None:
    axes.set_title(names.title, loc="left", fontsize=11, pad=14)
    axes.set_xlabel(names.x)
    axes.set_ylabel(names.y)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.08, y=0.15)
    values = [point.x for point in points]
    if names.most is not None:
        lowest = min(point.y - point.y_error for point in points)
        axes.set_ylim(min(lowest - 0.1 * (names.most - lowest), 0.9 * names.most), 1.02 * names.most)
        axes.set_yticks([tick for tick in axes.get_yticks() if tick <= names.most])
    if min(values) > 0 and max(values) > WIDEST_RATIO * min(values):
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,.6g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
    if names.fewer:
        axes.invert_xaxis()


def _number(axes: Axes, points: Sequence[Point]) -> None:
    """A number at each point, stacked where points lie close together."""
    axes.figure.draw_without_rendering()  # settles the layout, so that places are known
    taken: list[tuple[float, float]] = []
    for number, point in enumerate(points, start=1):
        x, y = axes.transData.transform((point.x, point.y)) * 72 / axes.figure.dpi
        above = 7.0
        while any(abs(x - a) < LABEL_WIDTH and abs(y + above - b) < LABEL_HEIGHT for a, b in taken):
            above += LABEL_HEIGHT
        taken.append((x, y + above))
        axes.annotate(
            str(number), (point.x, point.y), (0, above), textcoords="offset points", ha="center", fontsize=9, zorder=4
        )


def training_curves(runs: Mapping[str, TrainingLog]) -> Figure:
    """Loss, learning rate and gradient norm over the steps, of one run or of several to compare.

    Args:
        runs: by name, what the trainer logged (`read_training_log`).

    Raises:
        OptionError: no losses were logged.
    """
    panels = {
        title: keys for title, keys in PANELS.items() if any(_values(log, k) for log in runs.values() for k in keys)
    }
    if "loss" not in panels:
        raise OptionError("the log holds no losses; train for at least logging_steps steps, then draw again")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 1.0 + 2.3 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=[2] + [1] * (len(panels) - 1))
        for axes, (title, keys) in zip(grid[:, 0], panels.items(), strict=True):
            _draw_panel(axes, title, keys, runs)
        grid[-1, 0].set_xlabel("step")
    return figure


def _draw_panel(axes: Axes, title: str, keys: Mapping[str, str], runs: Mapping[str, TrainingLog]) -> None:
    """One line a run and key: the colour and marker say which run, or which key where there is only one run.

    Of several runs a key shows in its kind of line, and in markers that are hollow behind the first.
    """
    for number, (run, log) in enumerate(runs.items()):
        for kind, (key, called) in enumerate(keys.items()):
            values = _values(log, key)
            if not values:
                continue
            look = number if len(runs) > 1 else kind
            label = " ".join(word for word in (run if len(runs) > 1 else "", called) if word)
            axes.plot(
                *zip(*values, strict=True),
                color=COLOURS[look % len(COLOURS)],
                linestyle=LINES[kind % len(LINES)],
                marker=MARKERS[look % len(MARKERS)],
                markerfacecolor="white" if kind else None,
                markevery=max(1, len(values) // 12),
                markersize=4,
                linewidth=1.4,
                label=label or "_",
            )
    axes.set_ylabel(title)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, loc="upper right")


def _values(log: TrainingLog, key: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[key]) for entry in log if "step" in entry and key in entry]


def read_training_log(path: Path) -> list[dict[str, float]]:
    """What the trainer logged: the entries of a ``trainer_state.json``.

    Args:
        path: that file, or a folder somewhere below which it is, for instance a training's output folder; of several
            the one with the most steps.

    Raises:
        DataError: there is none, or it is not one.
    """
    files = [path] if path.is_file() else sorted(path.rglob(STATE_FILE))
    if not files:
        raise DataError(f"no {STATE_FILE} at or below {path}; give a training's output folder, or a checkpoint in it")
    return max(map(_read_state, files), key=lambda log: max((entry.get("step", 0) for entry in log), default=0))


def _read_state(file: Path) -> list[dict[str, float]]:
    try:
        log = json.loads(file.read_text(encoding="utf-8"))["log_history"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not what a trainer writes: it must be JSON with a 'log_history'") from error
    return [entry for entry in log if isinstance(entry, dict)]


def render(figure: Figure, suffix: str, *, title: str = "", table: Iterable[Sequence[str]] = ()) -> bytes:
    """The picture as a file.

    Args:
        suffix: one of `FORMATS`; ``.html`` is one page that needs nothing else, no network either.
        title: of the page.
        table: the figures behind the picture, header first, for the page.
    """
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        if suffix.lower() == ".png":
            figure.savefig(buffer, format="png", dpi=160)
            return buffer.getvalue()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": title or None})
    svg = buffer.getvalue()
    return svg if suffix.lower() == ".svg" else _page([svg.decode()], title, list(table)).encode()


def gallery(svgs: Sequence[bytes], title: str, table: Iterable[Sequence[str]]) -> bytes:
    """Several pictures on one page, with the figures behind them.

    Args:
        svgs: pictures, from `render`.
        title, table: as of `render`.
    """
    return _page([svg.decode() for svg in svgs], title, list(table)).encode()


PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 2rem auto; max-width: 70rem; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; color: #222; }}
svg {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin-top: 1rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }}
</style>
</head>
<body>
<h1>{title}</h1>
<figure role="img" aria-label="{title}; the figures are in the table below">
{svg}
</figure>
<div class="wide"><table>
{rows}
</table></div>
</body>
</html>
"""


def _page(svgs: Sequence[str], title: str, table: Sequence[Sequence[str]]) -> str:
    rows = []
    for number, row in enumerate(table):
        tag = "td" if number else "th"
        rows.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    drawing = "".join(svg[svg.index("<svg") :] for svg in svgs)  # an XML declaration has no place inside a page
    return PAGE.format(title=html.escape(title, quote=True), svg=drawing, rows="\n".join(rows))
