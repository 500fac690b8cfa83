"""Finding and loading lm-eval's tasks and those of plugins, from local files where a folder of data is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import datasets
from datasets.exceptions import DatasetsError
from lm_eval.tasks import TaskManager

from dllm_core import registry
from dllm_core.errors import DataError, UnknownComponentError, did_you_mean
from dllm_core.evaluation.code_tasks import code_eval_in_jail, code_tasks
from dllm_core.evaluation.narrowing import narrowed

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks.manager import TaskDict

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
LOCAL = (*dict.fromkeys(FORMATS.values()), "text", "arrow")


def find_tasks(names: Sequence[str], include: Sequence[Path] = ()) -> TaskManager:
    """lm-eval's index, with what plugins offer; of lm-eval's own 14,000 entries as few as will do.

    Args:
        include: folders of further tasks.

    Raises:
        UnknownComponentError: no such task, group or tag.
    """
    paths = [str(path) for path in (*task_folders(), *include)]
    manager = TaskManager(include_path=paths, include_defaults=False)
    if all(name in manager.task_index for name in names):
        return manager
    return narrowed(names, paths) or known(TaskManager(include_path=paths), names)


def task_folders() -> list[Path]:
    """The folders of the tasks that plugins offer."""
    found = [registry.resource_path(entry.spec.target) for entry in registry.components("eval task")]
    return [path if path.is_dir() else path.parent for path in found]


def known(manager: TaskManager, names: Sequence[str]) -> TaskManager:
    """The index itself. Raises UnknownComponentError for a name that it does not have."""
    for name in names:
        if name not in manager.task_index:
            near = did_you_mean(name, manager.task_index)
            raise UnknownComponentError(
                f"unknown task {name!r}.{near} 'lm-eval ls tasks' lists lm-eval's, 'dllm plugins' those of plugins"
            )
    return manager


def load_tasks(manager: TaskManager, name: str, data_dir: Path | None = None) -> dict[str, Task]:
    """The tasks that a name stands for, with their documents. Raises DataError, as `load` does."""
    return load(manager, name, data_dir)["tasks"]


def load(manager: TaskManager, name: str, data_dir: Path | None = None) -> TaskDict:
    """The tasks that a name stands for, with their documents, and the groups that they are in.

    Raises:
        DataError: the data are neither on this machine nor to be had, or packages of the task are missing.
    """
    jail = code_eval_in_jail() if code_tasks(manager, name) else nullcontext()
    try:
        with local_data(name, data_dir), jail:
            return manager.load([name])
    except ImportError as error:
        absent = error.name or getattr(error.__cause__, "name", None) or str(error).partition("\n")[0]
        raise DataError(
            f"task {name!r} needs the package {absent}, which is not installed; "
            "pip install 'lm-eval[math,ifeval]' has what lm-eval's tasks need"
        ) from error


class _Splits(datasets.DatasetDict):
    """A data set from local files, which names the file that is missing where a task asks for another split."""

    def __init__(self, splits: Mapping[str, datasets.Dataset], *, of: str, folder: Path) -> None:
        super().__init__(splits)
        self.of, self.folder = of, folder

    def __getitem__(self, split: str) -> datasets.Dataset:
        if split not in self:
            raise DataError(f"{self.of} needs {self.folder / split}.jsonl; this folder has {', '.join(self)} only")
        return super().__getitem__(split)


@contextmanager
def local_data(task: str, data_dir: Path | None) -> Iterator[None]:
    """Data sets come from `data_dir` where it has them, inside the ``with`` block; what is missing is named.

    A data set ``owner/name`` with the configuration ``part`` is looked for in ``name/part/``, ``owner/name/part/``,
    ``name/`` and ``owner/name/`` of the folder, one file a split: ``test.jsonl``, ``train.csv`` ...

    Args:
        task: for messages.

    Raises:
        DataError: a data set that cannot be loaded.
    """
    original = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **options: Any) -> object:
        found = {} if data_dir is None or path in LOCAL else local_files(data_dir, path, name)
        if found:
            folder = next(iter(found.values())).parent
            return _Splits(
                {split: _read(original, file) for split, file in found.items()}, of=f"task {task!r}", folder=folder
            )
        try:
            return original(path, name, **options)
        except (OSError, ValueError, DatasetsError) as error:  # no network, no such data set, no such file
            raise DataError(missing(task, path, name, data_dir, options)) from error

    with mock.patch.object(datasets, "load_dataset", load_dataset):
        yield


def _read(load_dataset: Callable[..., datasets.Dataset], file: Path) -> datasets.Dataset:
    """One split, read by itself: a column that is empty in one file may hold texts in another."""
    try:
        return load_dataset(FORMATS[_suffix(file)], data_files={"rows": str(file)}, split="rows")
    except (OSError, ValueError, DatasetsError) as error:
        cause = str(error.__cause__ or error).partition("\n")[0]
        raise DataError(f"{file} cannot be read as {_suffix(file)[1:]}: {cause}") from error


def local_files(data_dir: Path, path: str, part: str | None) -> dict[str, Path]:
    """The files of a data set by split, from the first folder that has any; empty where none has."""
    short = path.rsplit("/", 1)[-1]
    folders = [f"{name}/{part}" for name in (short, path) if part] + [short, path]
    for folder in dict.fromkeys(folders):
        files = sorted(file for file in (data_dir / folder).glob("*") if _suffix(file) in FORMATS)
        if files:
            return {file.name.partition(".")[0]: file for file in files}
    return {}


def missing(task: str, path: str, part: str | None, data_dir: Path | None, options: Mapping[str, object]) -> str:
    """What to say of data that cannot be loaded."""
    if path in LOCAL:
        return f"task {task!r} reads {options.get('data_files', path)}, which cannot be read; put the files there"
    short = path.rsplit("/", 1)[-1]
    where = "DIR" if data_dir is None else str(data_dir)
    which = f"{path!r} ({part})" if part else repr(path)
    place = "/".join(each for each in (where, short, part) if each)
    return (
        f"task {task!r} needs the data set {which}, which is not on this machine and cannot be downloaded; run once "
        f"with a network, or put its splits at {place}/test.jsonl (train, validation ...) and give --data-dir {where}"
    )


def wants_chat(task: Task) -> bool:
    """Whether a task says that its prompts are turns of a chat (``metadata: {chat: true}``)."""
    return bool((task.config.metadata or {}).get("chat", False))


def _suffix(file: Path) -> str:
    """``.jsonl`` of ``test.jsonl`` and of ``test.jsonl.gz``."""
    return next((each for each in file.suffixes if each != ".gz"), "")
