"""An evaluation as one HTML page that needs nothing beside itself: its scores, its samples, and how some came about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files

from dllm_core.display.page import page
from dllm_core.display.trace import Trace

MARK = "@DATA@"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One document of a task, as one filter judged it.

    Args:
        task: name of the task.
        number: of the document, with the filter's name where there are several.
        prompt: what the model was asked.
        answer: what it said, or its choices with their log-likelihoods.
        judged: what a filter made of the answer; None where that is the answer.
        target: what was wanted.
        scores: metrics, one a line.
        verdict: ``right``, ``wrong``, or None where that is no question of one or the other.
        trace: (which of the traces, which of its rows), None where none was recorded.
    """

    task: str
    number: str
    prompt: str
    answer: str
    judged: str | None
    target: str
    scores: str
    verdict: str | None
    trace: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the page shows.

    Args:
        title: its headline.
        about: one line on the model and the versions.
        table: cells, header first.
        parts: of each line below the header, whether it is a part of the one above.
        notes: one line below the table.
        samples: in the order in which they are listed.
        traces: what samples point to.
    """

    title: str
    about: str
    table: Sequence[Sequence[str]]
    parts: Sequence[bool]
    notes: str
    samples: Sequence[Sample]
    traces: Sequence[Trace]


def report_page(report: Report) -> str:
    """The page: the table, the samples with a choice of task, of right or wrong and of a text, and their traces."""
    data = {
        "title": report.title,
        "about": report.about,
        "table": report.table,
        "parts": report.parts,
        "notes": report.notes,
        "samples": [asdict(sample) for sample in report.samples],
        "traces": [page(trace) for trace in report.traces],
    }
    # "<" only ever stands inside strings, where the escape means the same; so no text can end the script element.
    encoded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    template = files("dllm_core.display").joinpath("report.html").read_text(encoding="utf-8")
    return template.replace(MARK, encoded)
