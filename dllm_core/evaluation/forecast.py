"""What an evaluation would cost, in forward passes, before a model is loaded."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_core import registry
from dllm_core.errors import DataError
from dllm_core.evaluation.estimates import LikelihoodOptions
from dllm_core.evaluation.plan import TaskPlan
from dllm_core.evaluation.settings import OF_LIKELIHOOD
from dllm_core.evaluation.tasks import load_tasks

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

DEFAULT_LENGTH = 256  # lm-eval's max_gen_toks, where neither the plan nor the task says one


@dataclass(frozen=True)
class Forecast:
    """One plan and what it costs.

    Args:
        plan: the plan.
        requests: prompts to complete, or targets to score; where the data are missing those that the plan states, None
            where it states none.
        forward_passes: at most so many: every token of every canvas, every copy of every target. The checks whether
            greedy decoding writes a target come on top, one pass or a few each. A pass with guidance takes twice the
            work.
        problem: why they were not counted.
    """

    plan: TaskPlan
    requests: int | None
    forward_passes: int | None
    problem: str | None = None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def forecast(
    plan: TaskPlan, manager: TaskManager, *, limit: int | None, batch_size: int, data_dir: Path | None
) -> Forecast:
    """Count the requests of a plan's tasks and what they take at most."""
    try:
        tasks = load_tasks(manager, plan.task, data_dir).values()
    except DataError as error:
        return stated(plan, limit=limit, batch_size=batch_size, problem=str(error))
    counted = [_requests(task, limit) for task in tasks]
    passes = sum(
        _passes(counts, plan, batch_size, _own_length(task)) for task, counts in zip(tasks, counted, strict=True)
    )
    return Forecast(plan, sum(sum(counts.values()) for counts in counted), passes)


def stated(plan: TaskPlan, *, limit: int | None, batch_size: int, problem: str) -> Forecast:
    """What a plan costs by the number of requests that it states; a limit is of documents, which are not known here."""
    if plan.requests is None:
        return Forecast(plan, None, None, problem)
    scored = bool(set(plan.options) & set(OF_LIKELIHOOD))
    requests = plan.requests if limit is None or scored else min(limit, plan.requests)
    counts = Counter({"loglikelihood" if scored else "generate_until": requests})
    return Forecast(plan, requests, _passes(counts, plan, batch_size, DEFAULT_LENGTH), problem)


def _requests(task: Task, limit: int | None) -> Counter[str]:
    """How many requests of each kind; examples in front of the questions do not change that, and are left out."""
    task.set_config(key="num_fewshot", value=0)
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that is gone before it can be read
        task.build_all_requests(limit=limit, rank=0, world_size=1)
    return Counter(instance.request_type for instance in task.instances for _ in range(instance.repeats or 1))


def _own_length(task: Task) -> int:
    return (task.config.generation_kwargs or {}).get("max_gen_toks", DEFAULT_LENGTH)


def _passes(counts: Counter[str], plan: TaskPlan, batch_size: int, own_length: int) -> int:
    preset = registry.find("sampler", plan.sampler).spec.defaults if plan.sampler else {}
    options, own = {**preset, **plan.options}, LikelihoodOptions()
    steps = next(filter(None, map(options.get, ("max_passes", "steps", "max_new_tokens"))), own_length)
    texts = counts["generate_until"]
    copies = (sum(counts.values()) - texts) * options.get("mc_num", own.mc_num)
    return math.ceil(texts / batch_size) * steps + math.ceil(copies / options.get("mc_batch_size", own.batch_size))
