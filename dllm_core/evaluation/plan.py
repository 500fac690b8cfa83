"""What an evaluation does, task by task: from names on the command line, or from a preset.

A preset is a YAML file::

    summary: Acme-8B as its paper evaluates it
    adapters: [acme]                     # the families that it is for
    model: acme/acme-8b
    tolerance: 2.0                       # points around a published score
    defaults: {chat: true, options: {temperature: 0.0}}
    tasks:
      - task: gsm8k_cot
        num_fewshot: 5
        options: {max_new_tokens: 512, steps: 512, block_size: 512}
        metric: exact_match,flexible-extract
        published: {official: 69.4, reproduced: 74.7}
        requests: 1319                   # of all its documents, for a plan without the data

``defaults`` holds what tasks may say too; of ``options`` both are merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import yaml

from dllm_core import registry
from dllm_core.config import at_least, from_mapping, one_of
from dllm_core.errors import DataError, OptionError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """One task with all of its settings.

    Args:
        task: lm-eval's name of a task or group.
        label: what tells it from other plans for the same task; empty: the task's name.
        num_fewshot: None: what the task says.
        chat: prompt through the chat template; None: where the task's metadata say so.
        sampler: by name; None: the run's.
        options: of the sampler and of likelihoods (``mc_num``, ``levels``, ``mc_batch_size``, ``end_in_view``).
        likelihood: ``masked``, ``block``, or None as of `DiffusionLM`.
        metric: what is compared with the published score, ``exact_match,flexible-extract``.
        published: scores in percent, by who published them.
        requests: prompts to complete, or targets to score, of all documents of the task; what a plan is costed by where
            the data are not at hand.
    """

    task: str
    label: str = ""
    num_fewshot: int | None = None
    chat: bool | None = None
    sampler: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    likelihood: str | None = None
    metric: str = ""
    published: Mapping[str, float] = field(default_factory=dict)
    requests: int | None = None

    def __post_init__(self) -> None:
        if self.num_fewshot is not None:
            at_least("num_fewshot", self.num_fewshot, 0)
        if self.requests is not None:
            at_least("requests", self.requests, 1)
        one_of("likelihood", self.likelihood, (None, "masked", "block"))
        if self.published and not self.metric:
            raise OptionError(f"task {self.task!r} has published scores and no metric; say which one they are of")

    @property
    def name(self) -> str:
        return self.label or self.task


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A table of a paper: what is run, on what, and what was published.

    Args:
        name: of the preset.
        summary: one line.
        adapters: the families that it is for, by the names of their adapters.
        model: what is evaluated where the command line names nothing.
        batch_size: prompts that are generated together, where the command line says nothing.
        add_bos: put the beginning-of-sequence token in front of prompts, where the command line says nothing.
        tolerance: points that ours may differ from a published score.
        plans: the tasks.
    """

    name: str
    summary: str
    adapters: Sequence[str]
    model: str
    plans: Sequence[TaskPlan]
    batch_size: int | None = None
    add_bos: bool | None = None
    tolerance: float = 2.0


def read_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UnknownComponentError: no plugin offers it.
        DataError: the file does not hold a preset.
    """
    path = registry.load("eval preset", name)
    return parse_preset(registry.find("eval preset", name).name, Path(path))


def parse_preset(name: str, path: Path) -> Preset:
    """The preset in a file.

    Raises:
        DataError: the file does not hold one; names the entry.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        defaults, tasks = content.pop("defaults", {}), content.pop("tasks")
        plans = [_plan({**defaults, **entry}, defaults.get("options", {}), entry) for entry in tasks]
        return from_mapping(Preset, {**content, "name": name, "plans": plans}, what=f"preset {name!r}")
    except (OptionError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{path.name} is no preset: {error}; see the docs on evaluation") from error


def plans_for(
    tasks: Sequence[str],
    *,
    num_fewshot: int | None,
    chat: bool | None,
    sampler: str | None,
    likelihood: str | None,
    options: Mapping[str, object],
) -> list[TaskPlan]:
    """Plans for tasks that the command line names, all with the same settings."""
    same = {"num_fewshot": num_fewshot, "chat": chat, "sampler": sampler, "likelihood": likelihood, "options": options}
    return [TaskPlan(task=task, **same) for task in tasks]


def chosen(
    preset: Preset,
    tasks: Sequence[str],
    options: Mapping[str, object],
    num_fewshot: int | None,
    *,
    chat: bool | None = None,
    sampler: str | None = None,
    likelihood: str | None = None,
) -> Preset:
    """The preset with these tasks only (all where none is named), and with settings that override its own.

    Args:
        options: over those of each plan.
        num_fewshot, chat, sampler, likelihood: for all plans; None: each plan's own.

    Raises:
        OptionError: the preset has no such task.
    """
    names = [plan.name for plan in preset.plans]
    for task in tasks:
        if task not in names and task not in {plan.task for plan in preset.plans}:
            raise OptionError(
                f"preset {preset.name!r} has no task {task!r}.{did_you_mean(task, names)} It has {', '.join(names)}"
            )
    plans = [plan for plan in preset.plans if not tasks or plan.name in tasks or plan.task in tasks]
    given = {"num_fewshot": num_fewshot, "chat": chat, "sampler": sampler, "likelihood": likelihood}
    same = {name: value for name, value in given.items() if value is not None}
    return replace(preset, plans=[replace(plan, options={**plan.options, **options}, **same) for plan in plans])


def check_family(preset: Preset, adapter: str) -> None:
    """Raise OptionError where a preset is for another family than the model's."""
    if adapter not in preset.adapters:
        raise OptionError(
            f"preset {preset.name!r} is for {' or '.join(preset.adapters)}, this model is of the family {adapter}; "
            "name tasks with --tasks instead"
        )


def _plan(merged: Mapping[str, object], shared: Mapping[str, object], entry: Mapping[str, object]) -> TaskPlan:
    known = {each.name for each in fields(TaskPlan)}
    for name in merged:
        if name not in known:
            raise OptionError(f"task {entry.get('task')!r} has no setting {name!r}.{did_you_mean(name, known)}")
    return TaskPlan(**{**merged, "options": {**shared, **entry.get("options", {})}})
