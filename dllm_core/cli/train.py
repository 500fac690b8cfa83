"""`dllm train`: train a model from a recipe."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dllm_core.cli.completing import recipes, words

if TYPE_CHECKING:
    from dllm_core.training.launch import Launch
    from dllm_core.training.recipes import Recipe

EPILOG = """\b
Examples:
  dllm train --recipe RECIPE --output out                     'dllm recipes' lists them
  dllm train --recipe own.yaml --output own max_steps=100 learning_rate=1e-4
  dllm train --recipe RECIPE --output out --resume            after Ctrl-C, or on another day
  dllm train --recipe RECIPE --output out --launch zero2 --processes 8
  dllm train --recipe RECIPE --output out --launch fsdp --processes 8 --nodes 4 --slurm
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--recipe",
    required=True,
    shell_complete=recipes,
    help="Name of an installed recipe (see dllm recipes), or a .yaml file.",
)
@click.option("--output", type=click.Path(file_okay=False), help="Folder for the trained model and its checkpoints.")
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint in the output folder.")
@click.option("--dry-run", is_flag=True, help="Print the recipe with the overrides applied, how it starts, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Report the result as JSON.")
@click.option(
    "--launch",
    metavar="ENGINE",
    shell_complete=words("single", "ddp", "zero1", "zero2", "zero3", "fsdp"),
    help="single, ddp, zero1, zero2, zero3 (DeepSpeed) or fsdp (GPUs only).",
)
@click.option("--processes", type=int, help="Processes on each machine. Default: one an accelerator.")
@click.option("--nodes", type=int, default=1, show_default=True, help="Machines.")
@click.option("--rendezvous", metavar="HOST:PORT", help="Where several machines meet; run the command on each of them.")
@click.option(
    "--slurm", is_flag=True, help="Write a batch script that goes on from the last checkpoint, and submit it."
)
@click.option("--slurm-script", type=click.Path(path_type=Path), help="Where that script goes. Alone: do not submit.")
@click.option("--slurm-option", multiple=True, metavar="KEY=VALUE", help="Of sbatch: time=24:00:00; may be repeated.")
@click.argument("overrides", nargs=-1, metavar="[[SECTION.]KEY=VALUE]...")
@click.pass_context
def command(
    ctx: click.Context,
    recipe: str,
    output: str | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    launch: str | None,
    processes: int | None,
    nodes: int,
    rendezvous: str | None,
    slurm: bool,
    slurm_script: Path | None,
    slurm_option: tuple[str, ...],
    overrides: tuple[str, ...],
) -> None:
    """Train a model from a recipe.

    SIGTERM and Ctrl-C save a checkpoint behind the step that is running and end with exit code 143 or 130; the same
    command with --resume goes on from there.
    """
    if output is None and not dry_run:
        raise click.UsageError("Missing option '--output'. Folder for the trained model and its checkpoints.")
    _keep_to_the_news()
    from dllm_core.training.launch import Launch, check_world, is_worker, with_engine
    from dllm_core.training.recipes import load_recipe

    resolved = load_recipe(recipe, overrides)
    place = Launch(engine=launch or "single", processes=processes, nodes=nodes, rendezvous=rendezvous)
    job = _Job(slurm, slurm_script, slurm_option)
    if launch is not None:
        resolved = with_engine(resolved, launch)
    if is_worker() and launch is not None:
        check_world(place)
    starts_others = job.is_wanted or (place.engine != "single" and not is_worker())
    if dry_run or starts_others:
        from dllm_core.training.run import check_recipe

        check_recipe(resolved, elsewhere=job.is_wanted)
    if dry_run:
        _say_plan(resolved, _plan(place.counted(), job, ctx.params) if starts_others else "", as_json=as_json)
    elif starts_others:
        ctx.exit(_start(place.counted(), job, ctx.params))
    else:
        _train(ctx, resolved, output, resume=resume, as_json=as_json)


def _train(ctx: click.Context, recipe: Recipe, output: str, *, resume: bool, as_json: bool) -> None:
    from dllm_core.training.launch import WorkerEnd

    end, speaks = WorkerEnd(), os.environ.get("RANK", "0") == "0"  # of several processes one does
    with redirect_stdout(sys.stderr):  # what libraries print is no result: DeepSpeed logs to stdout
        from transformers.utils.logging import disable_progress_bar

        from dllm_core.training.interruption import TrainingInterrupted
        from dllm_core.training.run import train

        if not sys.stderr.isatty():
            disable_progress_bar()
        try:
            folder = train(recipe, output, resume=resume)
        except TrainingInterrupted as interruption:
            if speaks:
                click.echo(str(interruption), err=True)
            end.with_code(interruption.exit_code)
            ctx.exit(interruption.exit_code)
    if speaks:
        click.echo(json.dumps({"output": str(folder)}) if as_json else f"Trained model in {folder}")
    end.with_code(0)


# What these loggers say at every start where they are installed and no GPU is at hand; nothing follows from it.
_SAID_WITHOUT_A_GPU = {
    "DeepSpeed": "Setting accelerator to CPU",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}


def _keep_to_the_news() -> None:
    for name in _SAID_WITHOUT_A_GPU:
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_SAID_WITHOUT_A_GPU[record.name])


@dataclass(frozen=True)
class _Job:
    """What was said of Slurm."""

    submit: bool
    script: Path | None
    options: tuple[str, ...]

    @property
    def is_wanted(self) -> bool:
        return self.submit or self.script is not None


def _plan(place: Launch, job: _Job, parameters: dict[str, Any]) -> str:
    """What `_start` would do: the line of torchrun, or the batch script."""
    from dllm_core.training.launch import torchrun_command
    from dllm_core.training.slurm import slurm_script

    arguments = worker_arguments(place, parameters)
    if not job.is_wanted:
        return shlex.join(torchrun_command(place, arguments))
    output = Path(parameters["output"] or "OUTPUT")
    return slurm_script(place, arguments, output=output, options=job.options)


def _say_plan(recipe: Recipe, plan: str, *, as_json: bool) -> None:
    """Print a recipe, and below it as a comment how it is started."""
    if as_json:
        click.echo(json.dumps({"recipe": recipe.as_dict(), "start": plan}))
    else:
        click.echo(recipe.as_yaml() + "".join(f"# {line}\n" for line in plan.splitlines()), nl=False)


def _start(place: Launch, job: _Job, parameters: dict[str, Any]) -> int:
    """Run torchrun, or write a batch script."""
    from dllm_core.training.launch import run_torchrun, torchrun_command
    from dllm_core.training.slurm import submit

    if not job.is_wanted:
        return run_torchrun(torchrun_command(place, worker_arguments(place, parameters)))
    output = Path(parameters["output"] or "OUTPUT")
    output.mkdir(parents=True, exist_ok=True)  # the job's log goes there
    file = job.script or output / "train.sbatch"
    file.write_text(_plan(place, job, parameters), encoding="utf-8")
    click.echo(submit(file) if job.submit else f"Wrote {file}; submit it with: sbatch {file}")
    return 0


def worker_arguments(place: Launch, parameters: dict[str, Any]) -> list[str]:
    """The arguments with which each process is to call `dllm train`."""
    own = ["--recipe", parameters["recipe"], "--launch", place.engine, "--processes", str(place.processes)]
    if place.nodes > 1:
        own += ["--nodes", str(place.nodes)]
    if parameters["output"] is not None:
        own += ["--output", parameters["output"]]
    own += [flag for name, flag in (("resume", "--resume"), ("as_json", "--json")) if parameters[name]]
    return [*own, *parameters["overrides"]]
