"""What the checks of evaluation tasks share: how tasks are loaded without a network, and who answers them.

lm-eval is optional and slow to import, so it is imported where it is used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import socket
import tempfile
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

from dllm_core import registry
from dllm_core.conformance.sampler_chance import process_seed
from dllm_core.conformance.suite import Suite

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

LOCAL_FORMATS = ("json", "csv", "parquet", "arrow", "text")
Doc = Mapping[str, Any]
Right = Callable[[Doc], bool]  # whether a document is answered rightly


class TaskSuite(Suite):
    """Attributes of the test class, and what its checks build on.

    Attributes:
        fixture: documents that stand in for a data set of the hub, ``{"test": [{"question": "2 + 2", ...}]}``, or the
            JSON-lines files that hold them. Not for tasks that bring their own data.
        prefix: what the names of all tasks begin with; None: the plugin's name.
        documents: how many documents of the task the checks look at, the first ones.
        bounded: all metrics lie in [0, 1], and right answers score 1, wrong ones 0.
        runs_code: running the task runs what the model wrote (``unsafe_code`` of lm-eval).
    """

    kind = "eval task"
    fixture: ClassVar[Mapping[str, Sequence[Doc] | str | Path] | None] = None
    prefix: ClassVar[str | None] = None
    documents: ClassVar[int] = 40
    bounded: ClassVar[bool] = True
    runs_code: ClassVar[bool] = False

    def load_component(self) -> Path:
        """The folder or file of the task, from its id ``plugin/name`` or from ``"package:relative/path"``."""
        is_path = ":" in self.component
        return registry.resource_path(self.component) if is_path else registry.load(self.kind, self.component)

    def right_answer(self, task: ConfigurableTask, doc: Doc) -> str:
        """What a model that is right generates for a document: its target; override where that is something else."""
        target = task.doc_to_target(doc)
        if task.config.doc_to_choice is not None:
            return task.doc_to_choice(doc)[target]
        return str(target[0] if isinstance(target, list) else target)

    def wrong_answer(self, task: ConfigurableTask, doc: Doc) -> str:
        """What a model that is wrong generates for a document."""
        return "no idea"

    def expected_prefix(self) -> str:
        """What the names of the tasks must begin with."""
        owner = re.split("[/:.]", self.component)[0].removeprefix("dllm_")
        return owner if self.prefix is None else self.prefix

    def files(self) -> list[Path]:
        """The YAML files of tasks and groups; lm-eval's templates, which start with ``_``, left out."""
        path = Path(self.load_component()).resolve()
        found = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
        return [file for file in found if not file.name.startswith("_")]

    def manager(self) -> TaskManager:
        """lm-eval's index of the task's folder, without the thousands of tasks of its own."""
        if importlib.util.find_spec("lm_eval") is None:
            raise unittest.SkipTest("lm-eval is not installed; pip install 'dllm-core[eval]'")
        from lm_eval.tasks import TaskManager

        path = Path(self.load_component()).resolve()
        return TaskManager(include_path=path if path.is_dir() else path.parent, include_defaults=False)

    def entries(self, manager: TaskManager) -> dict[str, dict[str, Any]]:
        """The tasks that belong to the component: name and what the YAML file says, includes resolved."""
        files, index = self.files(), manager.task_index
        names = [name for name in manager.all_subtasks if Path(index[name].yaml_path).resolve() in files]
        return {name: index[name].cfg for name in names}

    def load(self) -> dict[str, ConfigurableTask]:
        """All tasks by name, loaded offline, with their first documents."""
        manager = self.manager()
        with offline(self.fixture):
            tasks = manager.load(list(self.entries(manager)))["tasks"]
            for task in tasks.values():
                if task.get_config("num_fewshot") is None:
                    task.set_config(key="num_fewshot", value=0)
                self.arrange(task, lambda rows: list(rows)[: self.documents])
        return tasks

    def arrange(self, task: ConfigurableTask, change: Callable[[Sequence[Doc]], list[Doc]]) -> None:
        """Change which documents are asked, or in which order, before the task processes them."""
        from datasets import Dataset

        split = task.config.test_split or task.config.validation_split
        if split is None:
            raise AssertionError(f"{task.config.task} names no test_split and no validation_split; name one of them")
        task.dataset = dict(task.dataset) | {split: Dataset.from_list(change(task.dataset[split]))}

    def evaluate(self, task: ConfigurableTask, right: Right, *, state: int = 0) -> dict[str, float]:
        """Every metric of a task, ``"exact_match,none"``, for a model that answers rightly where `right` says so."""
        from lm_eval.evaluator import evaluate

        name = task.config.task
        if task.config.unsafe_code and not self.runs_code:
            raise unittest.SkipTest(f"{name} runs what a model wrote, and runs_code is not declared")
        task.set_fewshot_seed(seed=1234)
        allowed = {"HF_ALLOW_CODE_EVAL": "1"} if self.runs_code else {}
        with offline(self.fixture), process_seed(state), mock.patch.dict(os.environ, allowed):
            results = evaluate(
                lm=self.answerer(task, right),
                task_dict={"tasks": {name: task}},
                bootstrap_iters=0,
                confirm_run_unsafe_code=self.runs_code,
            )
        scores = results["results"][name]
        return {key: float(value) for key, value in scores.items() if "," in key and "_stderr" not in key}

    def answerer(self, task: ConfigurableTask, right: Right) -> LM:
        """A model for lm-eval that reads the answers from the documents."""
        from lm_eval.api.model import LM

        suite = self

        class Answerer(LM):
            def generate_until(self, requests: list[Instance]) -> list[str]:
                return [self._text(request) for request in requests]

            def _text(self, request: Instance) -> str:
                answer = suite.right_answer if right(request.doc) else suite.wrong_answer
                return cut(answer(task, request.doc), request.args[1]["until"])

            def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
                likely = [is_gold(task, request) == bool(right(request.doc)) for request in requests]
                return [(-0.01, True) if each else (-1000.0, False) for each in likely]

            def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
                return [-1.0 if right(request.doc) else -1000.0 for request in requests]

        return Answerer()


def golds_of(task: ConfigurableTask, doc: Doc) -> list[int]:
    """The numbers of the right choices of a document, -1 for one that is no choice."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)
    golds = gold if isinstance(gold, list) else [gold]
    numbers = [(choices.index(each) if each in choices else -1) if isinstance(each, str) else each for each in golds]
    return [int(number) for number in numbers]


def is_gold(task: ConfigurableTask, request: Instance) -> bool:
    """Whether a request asks for the likelihood of the right answer."""
    return task.OUTPUT_TYPE != "multiple_choice" or request.idx in golds_of(task, request.doc)


def cut(text: str, stops: str | Sequence[str]) -> str:
    """The text before the first stop string, as a model returns it."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text


def half(task: ConfigurableTask) -> Right:
    """Right about half of the documents, by what they hold and not by where they stand."""
    contents = sorted(content(doc) for doc in task.eval_docs)
    known = set(contents[: len(contents) // 2])
    return lambda doc: content(doc) in known


def content(doc: Doc) -> str:
    """A document as text; equal documents give equal texts."""
    return json.dumps(doc, sort_keys=True, default=str)


@contextlib.contextmanager
def offline(fixture: Mapping[str, Sequence[Doc] | str | Path] | None) -> Iterator[None]:
    """No network inside the ``with`` block, an empty working folder, no progress bars, the fixture for the hub's data.

    Raises:
        AssertionError: a data set of the hub is asked for and there is no fixture.
    """
    import datasets

    original = datasets.load_dataset
    here = Path.cwd()

    def load_dataset(path: str, name: str | None = None, **options: object) -> object:
        if fixture is not None:
            return {split: documents_of(rows, here) for split, rows in fixture.items()}
        if path not in LOCAL_FORMATS and not Path(path).is_dir():
            raise AssertionError(
                f"the data set {path!r} lies on the hub; give some of its documents: "
                f"fixture = {{'test': [...], 'train': [...]}}"
            )
        return original(path, name, **{"cache_dir": folder, "keep_in_memory": True} | options)

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(mock.patch.object(datasets, "load_dataset", load_dataset))
        stack.enter_context(mock.patch.object(socket, "getaddrinfo", refuse_network))
        stack.enter_context(mock.patch.object(socket.socket, "connect", refuse_network))
        os.chdir(folder)
        stack.callback(os.chdir, here)
        yield


def refuse_network(*address: object) -> None:
    """Stands in for what opens a connection."""
    raise OSError("the check runs without a network; ship the data inside the package, or give a fixture")


def documents_of(rows: Sequence[Doc] | str | Path, folder: Path) -> object:
    """A split from its documents, or from the JSON-lines file that holds them."""
    from datasets import Dataset

    if isinstance(rows, (str, Path)):
        lines = (folder / rows).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    return Dataset.from_list([dict(row) for row in rows])
