"""Checkpoints that are whole or not there: written to one side, listed, forced to disk, and renamed in.

A folder ``checkpoint-N`` appears under its name only with everything in it. What a killed process left half-written or
half-deleted lies in the folder ``.writing``, which nothing reads and the next start removes. The list of files and
sizes (``files.json``) tells a whole checkpoint from one that was copied in part.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_core.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dllm_core.training.trainer import DiffusionTrainer

PREFIX = "checkpoint-"
WRITING = ".writing"  # inside the folder of checkpoints: on the same file system, so that a rename is one step
LIST_OF_FILES = "files.json"
STATE_FILE = "trainer_state.json"
FINISHED_FILE = "finished.json"  # beside a published model: what it is the end of
_MARKS = ("config.json", "adapter_config.json")  # what makes a folder a model, or an adapter
_STAGING = ".saving"


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the latest step; None where there is none."""
    return max(whole_checkpoints(folder), key=step_of, default=None)


def whole_checkpoints(folder: Path) -> list[Path]:
    """Every whole checkpoint of a folder, by step."""
    named = (entry for entry in folder.glob(f"{PREFIX}*") if entry.name[len(PREFIX) :].isdigit())
    return sorted((entry for entry in named if is_whole(entry)), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[len(PREFIX) :])


def is_whole(checkpoint: Path) -> bool:
    """Whether every file that was written is there, in its whole length."""
    sizes = _read_json(checkpoint / LIST_OF_FILES)
    if sizes is None:
        return False
    return all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size for name, size in sizes.items()
    )


def state_of(checkpoint: Path) -> Mapping[str, object]:
    """The trainer's state at a whole checkpoint."""
    return json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))


def start_writing(folder: Path) -> Path:
    """An empty place for the next checkpoint; what an earlier process left half-written is removed."""
    writing = folder / WRITING
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True, exist_ok=True)
    return writing


def remove_half_written(folder: Path) -> None:
    """What a killed process left; called when a training starts."""
    shutil.rmtree(folder / WRITING, ignore_errors=True)


def finish_writing(folder: Path, name: str) -> Path:
    """Bring a checkpoint that was written to ``.writing`` in under its name, in one step."""
    written, place = folder / WRITING / name, folder / name
    sizes = {str(file.relative_to(written)): file.stat().st_size for file in _files(written)}
    write_json(written / LIST_OF_FILES, sizes)
    sync_tree(written)
    if place.exists():  # of an earlier training in this folder: it goes out whole before the new one comes in
        os.replace(place, folder / WRITING / f"earlier-{name}")
    os.replace(written, place)
    _sync(folder)
    shutil.rmtree(folder / WRITING, ignore_errors=True)
    return place


def remove_oldest(folder: Path, limit: int | None, keep: str | None) -> None:
    """Leave the `limit` newest whole checkpoints (0 or None: all), and `keep`, the best one, whatever its age.

    A checkpoint is renamed before it is deleted, so a kill never leaves half of one under its name.
    """
    if not limit or limit < 0:
        return
    whole = whole_checkpoints(folder)
    held = [
        checkpoint for checkpoint in whole if checkpoint == whole[-1] or (keep and checkpoint.name == Path(keep).name)
    ]
    spare = [checkpoint for checkpoint in whole if checkpoint not in held]
    for checkpoint in spare[: max(len(whole) - max(limit, len(held)), 0)]:
        (folder / WRITING).mkdir(exist_ok=True)
        os.replace(checkpoint, folder / WRITING / checkpoint.name)
    shutil.rmtree(folder / WRITING, ignore_errors=True)


# ------------------------------------------------------------------------------------------------ the trained model


def publish(trainer: DiffusionTrainer, output: Path) -> None:
    """Save model (or adapter) and tokenizer so that the folder is a checkpoint only once it is whole.

    Everything is written to one side and moved in, ``config.json`` last: without it a folder is no checkpoint. Weights
    are the averaged ones where the training keeps an average.
    """
    staging = output / _STAGING
    if trainer.is_world_process_zero():
        shutil.rmtree(staging, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(staging))
    if not trainer.is_world_process_zero():
        return
    (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says the same
    for weights in staging.glob("*.safetensors"):
        shutil.copymode(staging / _mark_of(staging), weights)  # safetensors keeps them to their owner
    lengths = {name: getattr(trainer.args, name) for name in LENGTHS}
    write_json(staging / FINISHED_FILE, {"step": trainer.state.global_step, **lengths})
    sync_tree(staging)
    for stale in [*(output / mark for mark in _MARKS), *output.glob("*.safetensors*"), output / FINISHED_FILE]:
        stale.unlink(missing_ok=True)  # of the model that was published before this training went on
    for file in sorted(staging.iterdir(), key=lambda file: file.name in _MARKS):
        os.replace(file, output / file.name)
    _sync(output)
    staging.rmdir()


LENGTHS = ("max_steps", "num_train_epochs")  # the arguments that say where a training ends


def is_published(output: Path) -> bool:
    """Whether the folder holds a model or an adapter."""
    return any((output / mark).exists() for mark in _MARKS)


def finished_at(output: Path, lengths: Mapping[str, object]) -> int | None:
    """The last step of a training of these `LENGTHS` that was published here; None where it is still to be done."""
    finished = _read_json(output / FINISHED_FILE)
    if finished is None or not is_published(output):
        return None
    return finished["step"] if all(finished.get(name) == lengths[name] for name in LENGTHS) else None


def _mark_of(folder: Path) -> str:
    marks = [mark for mark in _MARKS if (folder / mark).exists()]
    if not marks:
        raise OptionError(f"the trainer saved neither model nor adapter in {folder}; is its model a Hugging Face one?")
    return marks[0]


# ---------------------------------------------------------------------------------------------------------- files


def write_json(file: Path, content: object) -> None:
    write_text(file, json.dumps(content, indent=1))


def write_text(file: Path, text: str) -> None:
    """Write a file so that it is there whole, or as it was before."""
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    os.replace(aside, file)


def sync_tree(folder: Path) -> None:
    """Force every file below a folder, and the folders themselves, to disk."""
    for file in _files(folder):
        _sync(file)
    for below in [folder, *(entry for entry in folder.rglob("*") if entry.is_dir())]:
        _sync(below)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.rglob("*") if entry.is_file())


def _read_json(file: Path) -> dict | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
