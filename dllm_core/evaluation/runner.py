"""Runs the tasks of a plan through lm-eval, one after the other, and says what came of each.

What a result holds is the same whenever the same work is done, in one go or in several, on one process or on many; only
``timing`` is not.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import datasets
from lm_eval import simple_evaluate
from lm_eval.api import task as lm_eval_task

from dllm_core.evaluation.bridge import DiffusionLM
from dllm_core.evaluation.code_tasks import allowed, refuse_code
from dllm_core.evaluation.plan import TaskPlan
from dllm_core.evaluation.processes import rank_and_size
from dllm_core.evaluation.scores import compared, error_of, first_metric, scaled, with_aggregates
from dllm_core.evaluation.tasks import load, local_data, wants_chat

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

BOOTSTRAPS = 1000  # for standard errors of metrics that are no means
SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What holds for all tasks of a run.

    Args:
        limit: so many documents of each task, the first ones; None: all.
        system: a system message for chats.
        data_dir: local files in place of the hub's data sets.
        with_samples: keep prompts and answers.
        allow_code: tasks may run what the model wrote.
    """

    limit: int | None = None
    system: str | None = None
    data_dir: Path | None = None
    with_samples: bool = False
    allow_code: bool = False


@dataclass(frozen=True)
class Cost:
    """What answering took.

    Args:
        requests: different ones.
        forward_passes: calls of the model.
        tokens: generated, before the end of sequence.
    """

    requests: int
    forward_passes: int
    tokens: int


@dataclass(frozen=True)
class TaskResult:
    """What came of one plan.

    Args:
        plan: what was asked for.
        settings: what was in force, see `DiffusionLM`.
        metrics: by task or group, then by lm-eval's name of the metric; values between 0 and 1 or as the metric says.
        versions: of the tasks.
        documents: how many were asked, by task.
        cost: of all requests.
        likelihood: mean and largest standard error of the estimated likelihoods, in nats; None where nothing was
            estimated.
        seconds: of computing; of what was found in the journal, as it took then.
        samples: prompts and answers by task, where they were asked for.
    """

    plan: TaskPlan
    settings: Mapping[str, object]
    metrics: Mapping[str, Mapping[str, float]]
    versions: Mapping[str, object]
    documents: Mapping[str, int]
    cost: Cost
    likelihood: Mapping[str, float] | None
    seconds: float
    samples: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def score(self) -> float | None:
        """The compared metric, the first one where the plan names none; see `compared`. Shares are in percent."""
        return scaled(self.metric, compared(self.metrics, self.plan.task).get(self.metric))

    @property
    def metric(self) -> str:
        """lm-eval's name of the compared metric; empty where there is none."""
        return self.plan.metric or first_metric(compared(self.metrics, self.plan.task))

    @property
    def standard_error(self) -> float | None:
        """Of `score`, over documents, in its unit."""
        return scaled(self.metric, error_of(compared(self.metrics, self.plan.task), self.metric))

    def as_dict(self) -> dict[str, object]:
        """For the results file, without time and samples."""
        return {
            "plan": asdict(self.plan) | {"label": self.plan.name},
            "settings": self.settings,
            "metric": self.metric,
            "score": self.score,
            "standard_error": self.standard_error,
            "metrics": self.metrics,
            "versions": self.versions,
            "documents": self.documents,
            "cost": asdict(self.cost),
            "likelihood": self.likelihood,
        }


def run(
    lm: DiffusionLM, plans: Sequence[TaskPlan], manager: TaskManager, settings: RunSettings, *, sampler: str
) -> Iterator[TaskResult]:
    """Results, on the first process; all tasks are loaded and all settings checked before anything is computed.

    Args:
        sampler: for plans that name none.

    Raises:
        DataError: data of a task are missing.
        OptionError: settings that do not go together, or a task that runs code where that is not allowed.
    """
    quieten()
    if not settings.allow_code:
        refuse_code(manager, [plan.task for plan in plans])
    loaded = []
    for plan in plans:
        loaded.append(load(manager, plan.task, settings.data_dir))
        configure(lm, plan, sampler)
    for plan, tasks in zip(plans, loaded, strict=True):
        configure(lm, plan, sampler)
        result = evaluate(lm, plan, tasks["tasks"], manager, settings, groups=tasks.get("groups", {}))
        if result is not None:
            yield result


def configure(lm: DiffusionLM, plan: TaskPlan, sampler: str) -> None:
    """Give the model the settings of a plan. Raises OptionError."""
    lm.configure(plan.sampler or sampler, plan.options, likelihood=plan.likelihood)


def evaluate(
    lm: DiffusionLM,
    plan: TaskPlan,
    tasks: Mapping[str, Task],
    manager: TaskManager,
    settings: RunSettings,
    *,
    groups: Mapping[str, Group],
) -> TaskResult | None:
    """One plan; tasks of a group that differ in whether they are chats are asked one by one, and aggregated here.

    Returns:
        None on all processes but the first: they do their share of the batches, the first one scores.
    """
    lm.asked.clear()
    chats = {name: wants_chat(task) if plan.chat is None else plan.chat for name, task in tasks.items()}
    names = [plan.task] if len(set(chats.values())) == 1 else list(tasks)
    parts = [
        _ask(lm, name, plan, manager, settings, chat=chats.get(name, next(iter(chats.values())))) for name in names
    ]
    if rank_and_size()[0] != 0:
        return None
    metrics = {name: _numbers(values) for part in parts for name, values in part["results"].items()}
    documents = {name: count["effective"] for part in parts for name, count in part["n-samples"].items()}
    if len(parts) > 1:
        metrics = with_aggregates(metrics, documents, groups)
    samples = {name: rows for part in parts for name, rows in part.get("samples", {}).items()}
    batches, errors = lm.journal.batches(lm.asked), lm.standard_errors(lm.asked)
    return TaskResult(
        plan=plan,
        settings=lm.settings,
        metrics={name: values for name, values in metrics.items() if values},
        versions={name: version for part in parts for name, version in part["versions"].items()},
        documents=documents,
        cost=Cost(
            len(set(lm.asked)), sum(batch.forward_passes for batch in batches), sum(batch.tokens for batch in batches)
        ),
        likelihood={"mean": statistics.fmean(errors), "largest": max(errors)} if errors else None,
        seconds=sum(batch.seconds for batch in batches),
        samples=samples if settings.with_samples else {},
    )


def quieten() -> None:
    """Keep lm-eval and datasets from telling what nobody asked; their bars are for terminals only."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def _ask(
    lm: DiffusionLM, name: str, plan: TaskPlan, manager: TaskManager, settings: RunSettings, *, chat: bool
) -> Mapping[str, Any] | None:
    # lm-eval asks git for the commit of the working folder, which complains where that is none; ours is in the report.
    no_commit = mock.patch("lm_eval.evaluator.get_git_commit_hash", return_value=None)
    with local_data(name, settings.data_dir), no_commit, _lm_eval_aside(), allowed(allow=settings.allow_code):
        return simple_evaluate(
            lm,
            tasks=[name],
            num_fewshot=plan.num_fewshot,
            limit=settings.limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            system_instruction=settings.system,
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=BOOTSTRAPS,
            confirm_run_unsafe_code=settings.allow_code,
            **SEEDS,
        )


@contextmanager
def _lm_eval_aside() -> Iterator[None]:
    """Nothing of what lm-eval prints gets in between our results, and its bars are for terminals; nor does it fork."""
    bar = functools.partial(lm_eval_task.tqdm, leave=False, disable=None)
    with (
        contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()),
        mock.patch.object(lm_eval_task, "tqdm", functools.partial(bar, desc="Prompts")),
        mock.patch("tqdm.tqdm", bar),  # what its bootstrap imports when it runs
        mock.patch.dict(os.environ, {"DISABLE_MULTIPROC": "1"}),  # one chunk of bootstraps needs no pool
    ):
        yield


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    """The metrics among what lm-eval tells of a task; errors that it could not compute are left out."""
    named = {name: value for name, value in values.items() if "," in name and not isinstance(value, str)}
    return {name: float(value) for name, value in named.items()}
