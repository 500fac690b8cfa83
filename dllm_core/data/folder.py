"""Prepared data on disk: a folder that training uses, with the report and the tokenizer it was made for.

::

    folder/
        dllm_data.json   spec, options, the tokenizer's fingerprint, report
        train/ eval/     saved by the library datasets
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_core.config import from_mapping
from dllm_core.data.prepare import Prepared
from dllm_core.data.rendering import DataOptions
from dllm_core.data.report import Report
from dllm_core.data.sources import import_datasets
from dllm_core.errors import DataError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "dllm_data.json"
VERSION = 1
_PROBE = "Probe: 3 + 4 = 7\n\n\tnaïve déjà-vu 数学 \U0001f600 'quoted' <|x|> END"


def is_prepared(folder: Path) -> bool:
    return (folder / FILE).is_file()


def prepared_options(folder: Path) -> DataOptions:
    """The options that prepared data were made with."""
    about = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return from_mapping(DataOptions, about["options"], what=str(folder / FILE))


def save(prepared: Prepared, folder: Path, *, spec: str, fingerprint: str) -> None:
    """Write prepared data; the folder appears only once it is whole.

    Raises:
        OptionError: the folder is there already, or data are a stream.
    """
    check_free(folder)
    if prepared.options.streaming:
        raise OptionError("a stream is not prepared to a folder; leave out streaming")
    writing = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    about = {
        "version": VERSION,
        "spec": spec,
        "options": dataclasses.asdict(prepared.options),
        "tokenizer": fingerprint,
        "report": prepared.report.as_dict(),
    }
    try:
        prepared.train.save_to_disk(str(writing / "train"))
        if prepared.eval is not None:
            prepared.eval.save_to_disk(str(writing / "eval"))
        (writing / FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(writing, folder)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Raise where something is in the way; looked at before the work and before the writing.

    Raises:
        OptionError: the folder is there and not empty, or its parent is not there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"{str(folder)!r} is there already; name another folder")
    if not folder.absolute().parent.is_dir():
        raise OptionError(f"{str(folder.absolute().parent)!r} is no folder; create it, or name another one")


def read(folder: Path, *, tokenizer: PreTrainedTokenizerBase | None, **expected: object) -> Prepared:
    """Data that `save` wrote.

    Args:
        tokenizer: of the model that is trained.
        expected: options that the data have to have been prepared with.

    Raises:
        DataError: made by another version or with another tokenizer.
        OptionError: made with other options.
    """
    about = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if about.get("version") != VERSION:
        raise DataError(f"{str(folder)!r} was prepared by another version; run dllm data prepare again")
    if tokenizer is None or tokenizer_fingerprint(tokenizer) != about["tokenizer"]:
        raise DataError(
            f"{str(folder)!r} was prepared with another tokenizer or chat template than this model's; run dllm data "
            "prepare again with this model as --tokenizer"
        )
    for name, value in expected.items():
        if about["options"].get(name) != value:
            raise OptionError(
                f"{str(folder)!r} was prepared with {name}={about['options'].get(name)!r}, this training asks for "
                f"{value!r}; leave out data.{name}, or prepare again"
            )
    load = import_datasets().load_from_disk
    evaluation = folder / "eval"
    options = prepared_options(folder)
    return Prepared(
        load(str(folder / "train")), load(str(evaluation)) if evaluation.is_dir() else None, Report(), options
    )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The same for tokenizers that give the same tokens: from the vocabulary, the chat template, and a probe."""
    state = {
        "vocabulary": sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]),
        "template": tokenizer.chat_template,
        "special": sorted(tokenizer.all_special_ids),
        "probe": tokenizer(_PROBE, verbose=False)["input_ids"],
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
