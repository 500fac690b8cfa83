"""From one data set of a spec to the rows to train on and the rows to evaluate on, which never overlap.

``datasets`` reads everything, files too; it is imported on first use.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from dllm_core.data.grammar import DataPart, Limit
from dllm_core.errors import ComponentLoadError, DataError, did_you_mean

if TYPE_CHECKING:
    from types import ModuleType

    from datasets import Dataset, IterableDataset

FOLDER_VARIABLE = "BASE_DATASETS_DIR"  # where relative paths are looked for too; the name that ZHZisZZ/dllm uses
LOADERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
EVALUATION = ("test", "validation", "eval", "valid", "val", "dev", "held_out")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Rows:
    """The rows of one data set.

    Args:
        train: what is trained on.
        evaluation: None: there is nothing to evaluate on.
        is_running_text: rows are the lines of text files, which belong together in their order.
    """

    train: Dataset | IterableDataset
    evaluation: Dataset | IterableDataset | None
    is_running_text: bool


def import_datasets() -> ModuleType:
    """The library ``datasets``.

    Raises:
        ComponentLoadError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ComponentLoadError("data sets need the library datasets: pip install 'dllm-core[train]'") from error
    return datasets


def read_rows(part: DataPart, *, seed: int, streaming: bool, evaluation_rows: int | None = None) -> Rows:
    """The rows of one data set; at most `evaluation_rows` to evaluate on, with 0 none.

    Where it has no split to evaluate on and rows for that are asked for (``test:500``, ``test:5%``), they are held out
    of those to train on: drawn by `seed`; of running text its end; of a stream its beginning. What is held out is never
    trained on, whatever the limit of the training rows.

    Raises:
        DataError: no such data set, split or rows.
    """
    splits, is_running_text = open_splits(part, streaming=streaming)
    train_name, eval_name = _chosen_splits(part, list(splits))
    limits = dict(part.limits)
    train, evaluation = splits[train_name], None
    train_limit = limits.pop(train_name, limits.pop("train", None))
    if eval_name is not None:
        evaluation = _first(splits[eval_name], limits.pop(eval_name, None))
    elif wanted := [name for name in limits if name in EVALUATION]:
        limit = limits.pop(wanted[0])
        train, evaluation = _hold_out(train, limit, str(part), seed=seed, at_end=is_running_text)
    for name in limits:
        raise DataError(
            f"data set {str(part)!r} limits split {name!r}.{did_you_mean(name, splits)} Its splits are "
            f"{', '.join(splits)}; name the one to use with train_split or eval_split"
        )
    if evaluation is not None and evaluation_rows is not None:
        evaluation = _first(evaluation, Limit(count=evaluation_rows)) if evaluation_rows else None
    return Rows(_first(train, train_limit), evaluation, is_running_text)


def open_splits(part: DataPart, *, streaming: bool) -> tuple[dict[str, Dataset | IterableDataset], bool]:
    """Every split of a data set by name, and whether its rows are lines of running text.

    Raises:
        DataError: no such data set, or it cannot be read.
    """
    datasets = import_datasets()
    path = local_path(part.name)
    try:
        if path is not None:
            opened, is_running_text = _open_local(datasets, path, streaming=streaming)
        else:
            opened, is_running_text = _open_on_hub(datasets, part, streaming=streaming), False
    except DataError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"data set {str(part)!r} cannot be read: {reason[0][:300]}") from error
    return dict(opened), is_running_text


def local_path(name: str) -> Path | None:
    """The file or folder of that name, here or under ``$BASE_DATASETS_DIR``; None: it is a hub id.

    Raises:
        DataError: it is not there and cannot be a hub id.
    """
    path, base = Path(name).expanduser(), os.environ.get(FOLDER_VARIABLE)
    for candidate in (path, Path(base) / path) if base else (path,):
        if candidate.exists():
            return candidate.resolve()
    if not _HUB_ID.fullmatch(name) or name.startswith(".") or _loader(Path(name)) is not None:
        raise DataError(f"no file or folder {name!r}, and it is no hub id; give an existing path, or owner/name")
    return None


def _open_local(
    datasets: ModuleType, path: Path, *, streaming: bool
) -> tuple[Mapping[str, Dataset | IterableDataset], bool]:
    if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        saved = datasets.load_from_disk(str(path))
        splits = saved if isinstance(saved, dict) else {"train": saved}
        return ({name: rows.to_iterable_dataset() for name, rows in splits.items()} if streaming else splits), False
    files = _files_in(path) if path.is_dir() else [path]
    kinds = {_loader(file) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise DataError(
            f"{str(path)!r} holds {'files of several or unknown kinds' if kinds else 'no data file'}; give files that "
            f"end in one of {', '.join(LOADERS)}"
        )
    if any("::" in str(file) for file in files):
        raise DataError(f"{str(path)!r}: '::' cannot be part of a data file's path; rename it")
    kind = kinds.pop()
    options = {"text": {"keep_linebreaks": True}, "csv": {"sep": "\t"} if ".tsv" in files[0].suffixes else {}}
    data_files = {split: [glob.escape(str(file)) for file in own] for split, own in _by_split(files).items()}
    opened = datasets.load_dataset(kind, data_files=data_files, streaming=streaming, **options.get(kind, {}))
    return opened, kind == "text"


def _open_on_hub(datasets: ModuleType, part: DataPart, *, streaming: bool) -> Mapping[str, Dataset | IterableDataset]:
    subset, revision = part.options.get("subset"), part.options.get("revision")
    return datasets.load_dataset(part.name, subset, revision=revision, streaming=streaming)


def _files_in(folder: Path) -> list[Path]:
    """The data files below a folder, by path; hidden ones are none, and texts beside others are notes on them."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and _loader(file)]
    files = [file for file in files if not any(step.startswith(".") for step in file.relative_to(folder).parts)]
    return [file for file in files if _loader(file) != "text"] or files


def _loader(file: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() not in COMPRESSED]
    return LOADERS.get(suffixes[-1]) if suffixes else None


def _by_split(files: list[Path]) -> dict[str, list[Path]]:
    """Files by the split that their names begin with (``test-00001.parquet``); one file is `train`, as is the rest."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        word = re.split(r"[^a-z]", file.name.lower())[0] if len(files) > 1 else "train"
        splits.setdefault(word if word in EVALUATION else "train", []).append(file)
    return splits


def _chosen_splits(part: DataPart, names: list[str]) -> tuple[str, str | None]:
    """The names of the splits to train and to evaluate on.

    Raises:
        DataError: an option names a split that is not there, or it is not clear which to train on.
    """
    for option in ("train_split", "eval_split"):
        wanted = part.options.get(option)
        if wanted is not None and wanted not in names:
            raise DataError(
                f"data set {str(part)!r} has no split {wanted!r}.{did_you_mean(wanted, names)} Its splits are "
                f"{', '.join(names)}"
            )
    train = part.options.get("train_split") or _first_of(("train",), names)
    train = names[0] if train is None and len(names) == 1 else train
    evaluation = part.options.get("eval_split") or _first_of(EVALUATION, [name for name in names if name != train])
    if train is None or train == evaluation:
        raise DataError(
            f"data set {str(part)!r} has the splits {', '.join(names)}; name the one to train on with train_split, and "
            "with eval_split another one"
        )
    return train, evaluation


def _first_of(wanted: tuple[str, ...], names: list[str]) -> str | None:
    """The first name that is wanted, or else begins with a wanted word (``train_sft``)."""
    exact = [name for word in wanted for name in names if name == word]
    return next(iter(exact + [name for word in wanted for name in names if name.startswith(f"{word}_")]), None)


def _first(rows: Dataset | IterableDataset, limit: Limit | None) -> Dataset | IterableDataset:
    if limit is None:
        return rows
    if hasattr(rows, "__len__"):
        return rows.select(range(limit.of(len(rows))))
    if limit.count is None:
        raise DataError(f"a stream has no length that {limit} could be taken of; give a number of rows")
    return rows.take(limit.count)


def _hold_out(
    rows: Dataset | IterableDataset, limit: Limit, what: str, *, seed: int, at_end: bool
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset]:
    """(rows to train on, rows held out): disjoint, and together all rows."""
    if not hasattr(rows, "__len__"):
        aside = _first(rows, limit)
        return rows.skip(limit.count), aside
    total, held = len(rows), limit.of(len(rows))
    if held >= total:
        raise DataError(f"data set {what!r}: {held} of {total} rows for evaluation leave none to train on; take fewer")
    if at_end:
        return rows.select(range(total - held)), rows.select(range(total - held, total))
    is_held = numpy.zeros(total, dtype=bool)
    is_held[numpy.random.Generator(numpy.random.PCG64(seed)).permutation(total)[:held]] = True
    return rows.select(numpy.flatnonzero(~is_held)), rows.select(numpy.flatnonzero(is_held))
