"""The training curves of `dllm visualize RUN_FOLDER`: from the trainer's log to a picture or a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from dllm_core.cli.output import whole_file
from dllm_core.display import plots
from dllm_core.errors import OptionError


def is_training(path: Path) -> bool:
    """Whether a path is a training's folder or log, and no trace.

    Raises:
        DataError: a folder without a log.
    """
    if path.is_dir():
        plots.read_training_log(path)
    return path.is_dir() or path.name == plots.STATE_FILE


def visualize(path: Path, exports: Mapping[str, Path], *, as_json: bool) -> list[Path]:
    """Draw each export; returns what was written.

    Args:
        exports: by flag, the files that are wanted.

    Raises:
        OptionError: nothing is wanted, what a training has none of, or a file that cannot be written.
        DataError: no log at or below the path.
    """
    if not (exports or as_json):
        raise OptionError(f"{path} is a training, whose curves are drawn into a file; give --png, --svg or --html FILE")
    if "--gif" in exports:
        raise OptionError("the curves of a training do not move; give --png, --svg or --html in place of --gif")
    for flag, file in exports.items():
        if file.suffix.lower() != f".{flag[2:]}":
            raise OptionError(f"{flag} {file} must end in .{flag[2:]}")
        plots.check(file)
    log = plots.read_training_log(path)
    if as_json:
        print(json.dumps(log))
    if exports:
        name = path.resolve().name if path.is_dir() else path.resolve().parent.name
        figure = plots.training_curves({name: log})
        for flag, file in exports.items():
            with whole_file(file, flag) as out:
                out.write(plots.render(figure, file.suffix, title=f"{name}: training", table=rows(log)))
    return list(exports.values())


def rows(log: plots.TrainingLog) -> Iterator[list[str]]:
    """The table beside the curves: a row a logged step, the columns that are drawn."""
    drawn = [key for keys in plots.PANELS.values() for key in keys]
    steps: dict[float, dict[str, float]] = {}
    for entry in log:
        if "step" in entry and any(key in entry for key in drawn):
            steps.setdefault(entry["step"], {}).update(entry)
    names = [key for key in drawn if any(key in entry for entry in steps.values())]
    yield ["step", *names]
    for step, entry in sorted(steps.items()):
        yield [str(step), *(f"{entry[name]:.4g}" if name in entry else "" for name in names)]
