"""Writing a checkpoint folder that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_core.errors import OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_free(output: Path) -> None:
    """Raise where a checkpoint cannot go: there is something already, or a file where a folder should be.

    Raises:
        OptionError: see above.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise OptionError(f"{str(output)!r} exists already; name a new folder")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise OptionError(f"{str(output)!r} cannot be written: {str(above)!r} is no folder that you may write to")


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, output: Path) -> Path:
    """Save a model and its tokenizer into a new folder: written beside it, forced to disk, renamed in one step.

    Raises:
        OptionError: the folder exists already and is not empty.
    """
    check_free(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.absolute().with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        model.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        for weights in staging.glob("*.safetensors"):
            shutil.copymode(staging / "config.json", weights)  # safetensors keeps them to their owner
        for path in [*staging.iterdir(), staging]:
            _sync(path)
        os.replace(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return output


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
