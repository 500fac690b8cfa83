"""Where a training starts: anew, from the newest whole checkpoint, or not at all because it is finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_core.errors import OptionError
from dllm_core.training.checkpoints import is_published, newest_checkpoint, step_of
from dllm_core.training.recipes import load_recipe

if TYPE_CHECKING:
    from dllm_core.training.recipes import Recipe

RECIPE_FILE = "recipe.yaml"
CHECKPOINTS = "checkpoints"  # folder of the steps to resume from, inside the output folder

# A training that goes on with another value of these would be another training. `training` is not among the sections:
# its values may change, apart from these, and a change is told.
FIXED_SECTIONS = ("model", "tokenizer", "data", "objective", "lora")
FIXED_ARGUMENTS = ("seed", "data_seed", "optim", "ema_decay")
FREE = ("model.attn_implementation", "data.eval_count", "data.eval_file", "data.eval_split")


def starting_point(recipe: Recipe, output: Path, *, resume: bool) -> Path | None:
    """The checkpoint to go on from; None: start anew.

    Raises:
        OptionError: the folder is not empty and nothing was said of resuming, or what is there is of another training.
    """
    newest = newest_checkpoint(output / CHECKPOINTS)
    if not resume:
        if is_published(output):
            raise OptionError(f"{str(output)!r} holds a model already; name another folder, or resume that training")
        if newest is not None:
            raise OptionError(
                f"{str(output)!r} holds a training that got to step {step_of(newest)}; go on with --resume, or name "
                "another folder"
            )
        return None
    if newest is not None:
        check_same_training(recipe, output)
    return newest


def check_same_training(recipe: Recipe, output: Path) -> None:
    """Raise where the checkpoints in a folder are of a training that this recipe would not go on with.

    Raises:
        OptionError: a value of the recipe beside them that must stay is another one now.
    """
    file = output / RECIPE_FILE
    if not file.is_file():
        return
    fixed = [change for change in changes(load_recipe(file), recipe) if is_fixed(change[0])]
    if fixed:
        name, there, here = fixed[0]
        more = f" (and {len(fixed) - 1} more)" if len(fixed) > 1 else ""
        raise OptionError(
            f"the training in {str(output)!r} has {name}={there!r}, this one {here!r}{more}; resume with the recipe "
            f"{str(file)!r}, or start anew in another folder"
        )


def changes(before: Recipe, now: Recipe) -> list[tuple[str, object, object]]:
    """``(section.key, value before, value now)`` of everything that differs."""
    old, new = (dict(_flat(dataclasses.asdict(recipe))) for recipe in (before, now))
    return [(name, old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)]


def is_fixed(name: str) -> bool:
    section, _, key = name.partition(".")
    return (section in FIXED_SECTIONS and name not in FREE) or (section == "training" and key in FIXED_ARGUMENTS)


def _flat(mapping: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    for name, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
