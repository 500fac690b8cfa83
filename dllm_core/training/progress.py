"""What a training shows on stderr: its resolved configuration, then a bar on a terminal and lines elsewhere."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback
from transformers.utils import logging

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState

    from dllm_core.training.arguments import DiffusionArguments
    from dllm_core.training.recipes import Recipe
    from dllm_core.training.trainer import DiffusionTrainer

Row = tuple[str, str, str]  # section, key, value

# Arguments that are shown although the recipe leaves them to their defaults.
SHOWN = ("learning_rate", "lr_scheduler_type", "optim", "seed", "save_total_limit")


def configuration(recipe: Recipe, trainer: DiffusionTrainer) -> Iterator[Row]:
    """The resolved configuration: the recipe with what its defaults came to, and what follows from it."""
    if recipe.summary:
        yield "recipe", "summary", recipe.summary
    for name in ("model", "tokenizer", "data", "lora"):
        section = getattr(recipe, name)
        if section is not None:
            yield from _rows(name, dataclasses.asdict(section))
    model = trainer.denoiser.bare_model
    yield "model", "class", type(model).__name__
    yield "model", "weights", _weights(model)
    yield "model", "context", str(trainer.denoiser.context_length or "unbounded")
    objective = trainer.objective
    options = dataclasses.asdict(objective) if dataclasses.is_dataclass(objective) else {}
    yield from _rows("objective", {**recipe.objective, **options})
    args = trainer.args
    yield from _rows("training", {name: getattr(args, name) for name in (*SHOWN, *recipe.training)})
    batch, micro, processes = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
    product = f"{batch} x {micro} micro-batches x {processes} processes"
    yield "training", "examples a step", f"{batch * micro * processes} = {product}"
    yield "training", "device", f"{args.device}"


def _rows(section: str, options: Mapping[str, object]) -> Iterator[Row]:
    for key, value in options.items():
        if value is not None and value != {} and value != ():
            yield section, key, str(getattr(value, "value", value))


def _weights(model: object) -> str:
    # Under ZeRO-3 a parameter is empty here and says its size beside.
    sizes = [(getattr(weight, "ds_numel", weight.numel()), weight.requires_grad) for weight in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    return f"{total:,}" if trained == total else f"{total:,}, of which {trained:,} are trained"


def show_configuration(recipe: Recipe, trainer: DiffusionTrainer) -> None:
    """A table on a terminal; elsewhere a line a value, for logs."""
    console = Console(stderr=True, highlight=False)
    rows = sorted(configuration(recipe, trainer), key=lambda row: ORDER.index(row[0]))
    if not console.is_terminal:
        print("\n".join(f"{section}.{key}: {value}" for section, key, value in rows), file=sys.stderr, flush=True)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    previous = ""
    for section, key, value in rows:
        table.add_row(Text("" if section == previous else section, "bold"), Text(key, "cyan"), Text(value))
        previous = section
    console.print(table)
    console.print()


# What Hugging Face logs beside the losses; reporters (report_to) get it all.
UNTOLD = ("epoch", "_per_second", "_flos", "eval_runtime", "eval_model_preparation_time")
ORDER = ("recipe", "model", "tokenizer", "data", "lora", "objective", "training")


class ProgressLines(TrainerCallback):
    """One line on stderr whenever the trainer logs."""

    def on_log(
        self,
        args: DiffusionArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if state.is_world_process_zero and logs:
            print(line_of(state, logs), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


class ProgressBar(TrainerCallback):
    """A bar on the terminal that stderr is, with the latest loss; what is logged stands above it."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._training: TaskID | None = None
        self._evaluation: TaskID | None = None

    def on_train_begin(
        self, args: DiffusionArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if not state.is_world_process_zero:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[loss]}"), console=self._console, transient=True)
        self._training = self._progress.add_task(
            "training", total=state.max_steps, completed=state.global_step, loss=""
        )
        self._progress.start()

    def on_step_end(self, args: DiffusionArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if self._progress is not None:
            self._progress.update(self._training, completed=state.global_step)

    def on_log(
        self,
        args: DiffusionArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if self._progress is None or not logs:
            return
        if "loss" in logs:
            self._progress.update(self._training, loss=f"loss {_number(logs['loss'])}")
        self._progress.console.print(Text(line_of(state, logs), "dim"))

    def on_prediction_step(
        self,
        args: DiffusionArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: object = None,
        **_: object,
    ) -> None:
        if self._progress is None:
            return
        if self._evaluation is None:
            total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
            self._evaluation = self._progress.add_task("evaluation", total=total, loss="")
        self._progress.advance(self._evaluation)

    def on_evaluate(self, *_: object, **__: object) -> None:
        if self._evaluation is not None:
            self._progress.remove_task(self._evaluation)
            self._evaluation = None

    def on_train_end(self, *_: object, **__: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


@contextmanager
def only_one_display() -> Iterator[None]:
    """Inside, Hugging Face draws no bar for every file of weights that it writes."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def progress_display() -> ProgressLines | ProgressBar:
    """What fits stderr."""
    console = Console(stderr=True, highlight=False)
    return ProgressBar(console) if console.is_terminal and not console.is_dumb_terminal else ProgressLines()


def line_of(state: TrainerState, logs: Mapping[str, object]) -> str:
    told = {name: value for name, value in logs.items() if not name.endswith(UNTOLD)}
    return f"step {state.global_step}/{state.max_steps}  " + "  ".join(f"{n} {_number(v)}" for n, v in told.items())


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
