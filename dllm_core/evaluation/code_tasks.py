"""Tasks that run what the model wrote: which they are, and how lm-eval's own come to do so in our jail."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from unittest import mock

from dllm_core.errors import OptionError
from dllm_core.evaluation.execution import SWITCH, pass_at_k

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lm_eval.tasks import TaskManager


class CodeEval:
    """What ``evaluate.load("code_eval")`` gives to lm-eval's tasks, which would download a program that has no jail.

    Args:
        loading: tasks are being loaded. They try themselves out while their modules are imported, before anybody could
            allow anything; that is answered without running it.
    """

    def __init__(self, *, loading: bool) -> None:
        self.loading = loading

    def compute(
        self, *, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] = (1,)
    ) -> tuple[dict[str, float], dict]:
        """Scores as of `pass_at_k`; the second part, details that no task reads, is empty."""
        if self.loading:
            return {f"pass@{number}": float("nan") for number in k}, {}
        return pass_at_k(references, predictions, k), {}


def code_tasks(manager: TaskManager, name: str) -> list[str]:
    """The tasks that a name stands for and that run code, found without importing what belongs to them."""
    return [task for task, config in _configs(manager, name, {}) if config.get("unsafe_code")]


def refuse_code(manager: TaskManager, names: Sequence[str]) -> None:
    """Raise OptionError where a task would run what the model wrote."""
    for name in names:
        for task in code_tasks(manager, name):
            raise OptionError(
                f"task {task!r} runs code that the model writes; allow it with --allow-code-execution (a jail holds "
                "it, see the docs on evaluation), or leave the task out"
            )


def allowed(*, allow: bool) -> AbstractContextManager:
    """Inside the ``with`` block scorers may run code, if `allow` says so."""
    return mock.patch.dict(os.environ, {SWITCH: "1"}) if allow else nullcontext()


@contextmanager
def code_eval_in_jail(*, loading: bool = True) -> Iterator[None]:
    """Tasks that are loaded inside the ``with`` block score code by `pass_at_k`, also after it."""
    import evaluate  # a second to import, and only such tasks need it

    ours, original = CodeEval(loading=loading), evaluate.load

    def load(path: str, *arguments: Any, **options: Any) -> object:
        return ours if path == "code_eval" else original(path, *arguments, **options)

    with mock.patch.object(evaluate, "load", load):
        yield
    ours.loading = False


def _configs(manager: TaskManager, name: str, own: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tasks below a name with their settings; `own` are those that a group gives them."""
    entry = manager.task_index.get(name)
    config = {**((entry and entry.cfg) or {}), **own}
    children = sorted(entry.tags) if entry and entry.kind.name == "TAG" else config.get("task")
    if not isinstance(children, list):
        yield name, config
        return
    for child in children:
        if isinstance(child, str):
            yield from _configs(manager, child, {})
        else:
            child_name = child.get("group") or child["task"]
            yield from _configs(manager, child_name, {key: child[key] for key in child if key != "group"})
