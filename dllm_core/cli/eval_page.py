"""The page of an evaluation: what lm-eval logged of its samples, made readable, with traces of some answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dllm_core.display.recorder import TraceRecorder
from dllm_core.display.report import Report, Sample, report_page
from dllm_core.display.run_view import special_ids, token_text
from dllm_core.evaluation.report import likelihood_lines, score_rows

if TYPE_CHECKING:
    from dllm_core.display.trace import Trace
    from dllm_core.evaluation.bridge import DiffusionLM
    from dllm_core.evaluation.runner import TaskResult

Logged = Mapping[str, Any]  # a line of lm-eval's samples


def eval_page(
    report: Mapping[str, Any],
    results: Sequence[TaskResult],
    traces: Mapping[str, Trace],
    *,
    tolerance: float | None,
) -> str:
    """The page.

    Args:
        report: the results file.
        results: with their samples.
        traces: by name of the plan, of the documents that `to_trace` gives.
        tolerance: points around a published score.
    """
    header, *rows = score_rows(results, tolerance=tolerance)
    numbers = {name: number for number, name in enumerate(traces)}
    samples = [
        sample
        for result in results
        for sample in samples_of(result, numbers.get(result.plan.name), len(traces[result.plan.name].rows)
                                 if result.plan.name in traces else 0)
    ]  # fmt: skip
    model, settings = report["model"], report["settings"]
    about = [f"{model['name']}, {model['dtype']}", f"seed {settings['seeds']['noise']}", f"commit {report['commit']}"]
    about += [f"{name} {version}" for name, version in report["versions"].items() if isinstance(version, str)]
    return report_page(
        Report(
            title=f"{report['preset'] or model['name']}: evaluation",
            about=", ".join(about),
            table=[header.cells, *(row.cells for row in rows)],
            parts=[row.is_part for row in rows],
            notes="; ".join([*likelihood_lines(results), *([] if tolerance is None else [_same(tolerance)])]),
            samples=samples,
            traces=list(traces.values()),
        )
    )


def record(lm: DiffusionLM, result: TaskResult, count: int) -> Trace | None:
    """A trace of the first answers of a plan; None where nothing was generated. `lm` has the settings of the plan."""
    asked = [row["arguments"][0] for _, row in to_trace(result, count)]
    if not asked:
        return None
    denoiser = lm.denoiser
    recorder = TraceRecorder(
        token_text(denoiser),
        mask_id=denoiser.mask_token_id,
        special_ids=special_ids(denoiser),
        end_ids=denoiser.end_token_ids,
    )
    lm.retrace(asked, recorder)
    return recorder.trace({"model": result.plan.name, "sampler": lm.sampler, "seed": lm.seed})


def to_trace(result: TaskResult, count: int) -> list[tuple[tuple[str, int], Logged]]:
    """The first `count` documents of the plan whose answers were generated, by task and number."""
    found = {(task, row["doc_id"]): row for task, rows in result.samples.items() for row in rows if _is_text(row)}
    return list(found.items())[:count]


def samples_of(result: TaskResult, trace: int | None, traced: int) -> Iterator[Sample]:
    """The samples of a plan.

    Args:
        trace: number of its trace among those of the page.
        traced: how many of its documents are in it.
    """
    rows = {place: number for number, (place, _) in enumerate(to_trace(result, traced))}
    for task, logged in result.samples.items():
        several = len({row["filter"] for row in logged}) > 1
        for row in logged:
            at = rows.get((task, row["doc_id"]))
            yield Sample(
                task=result.plan.name if task == result.plan.task else f"{result.plan.name}, {task}",
                number=f"{row['doc_id']} {row['filter']}" if several else str(row["doc_id"]),
                prompt=str(row["arguments"][0][0]),
                answer=_answer(row),
                judged=_judged(row),
                target=str(row["target"]),
                scores="\n".join(f"{name}: {row[name]}" for name in row["metrics"]),
                verdict=_verdict(result, row),
                trace=None if at is None or trace is None else (trace, at),
            )


def _same(tolerance: float) -> str:
    return f"same: within {tolerance:g} points of what was published"


def _is_text(row: Logged) -> bool:
    return len(row["arguments"][0]) == 2 and isinstance(row["arguments"][0][1], Mapping)


def _answer(row: Logged) -> str:
    """What was generated, one text a repeat; or the continuations with their log-likelihoods, the likeliest first."""
    if _is_text(row):
        return "\n\n".join(str(text) for texts in row["resps"] for text in texts)
    if not isinstance(row["resps"][0][0], Sequence):  # the log-likelihood of a whole text
        return str(row["resps"][0][0])
    pairs = [
        (response[0][0], arguments[-1]) for response, arguments in zip(row["resps"], row["arguments"], strict=True)
    ]
    return "\n".join(f"{value:.3f}  {text}" for value, text in sorted(pairs, key=lambda pair: -pair[0]))


def _judged(row: Logged) -> str | None:
    if not _is_text(row):
        return None
    judged = row["filtered_resps"][0]
    text = "\n\n".join(map(str, judged)) if isinstance(judged, list) else str(judged)
    return None if text == _answer(row) else text


def _verdict(result: TaskResult, row: Logged) -> str | None:
    """By the compared metric where this filter has it, else by the first one."""
    own = result.metric.partition(",")[0]
    value = row.get(own if own in row["metrics"] else next(iter(row["metrics"]), ""))
    if isinstance(value, bool | int | float) and value in (0, 1):
        return "right" if value else "wrong"
    return None
