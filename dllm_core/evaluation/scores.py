"""Which of lm-eval's metrics is the score, and what groups come to whose tasks were asked apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval.api.group import Group

Metrics = Mapping[str, float]
# Metrics that are no shares of the documents, so that a hundred times as much would mean nothing.
OWN_SCALE = ("perplexity", "bits_per_byte", "brier_score", "mcc", "bleu", "chrf", "ter", "likelihood")


def is_share(metric: str) -> bool:
    """Whether a metric, by lm-eval's name, is a share and shown in percent."""
    name = metric.partition(",")[0]
    return not any(own in name for own in OWN_SCALE)


def scaled(metric: str, value: float | None) -> float | None:
    """A value as it is shown: shares in percent, others as they are."""
    return value if value is None or not is_share(metric) else 100 * value


def first_metric(metrics: Metrics) -> str:
    """The first metric that is no standard error; empty where there is none."""
    return next((name for name in metrics if "_stderr," not in name), "")


def error_of(metrics: Metrics, name: str) -> float | None:
    """The standard error of a metric; None where it has none."""
    value = metrics.get(name.replace(",", "_stderr,", 1), math.nan)
    return None if math.isnan(value) else value


def compared(metrics: Mapping[str, Metrics], task: str) -> Metrics:
    """The metrics of a plan: of the task or group itself, or of its only task.

    A tag, and a group that says nothing of an aggregate, have none: tasks that differ in what they measure are not
    averaged by guess.
    """
    if task in metrics:
        return metrics[task]
    return next(iter(metrics.values())) if len(metrics) == 1 else {}


def with_aggregates(
    metrics: Mapping[str, Metrics], documents: Mapping[str, int], groups: Mapping[str, Group]
) -> dict[str, Metrics]:
    """The metrics of tasks that were asked apart, and those of their groups, as lm-eval aggregates them.

    Args:
        metrics: by task.
        documents: how many were asked, by task.
        groups: from lm-eval's task manager.
    """
    known = {task: {**values, "sample_len": documents.get(task, 0)} for task, values in metrics.items()}
    sums = {name: group.aggregate(known) for name, group in groups.items() if group.has_aggregation}
    own = {name: {key: value for key, value in found.items() if "," in key} for name, found in sums.items()}
    numbers = {name: {key: float(value) for key, value in found.items() if not isinstance(value, str)}
               for name, found in own.items()}  # fmt: skip
    return {**{name: values for name, values in numbers.items() if values}, **metrics}
