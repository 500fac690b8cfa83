"""`dllm train`: train a model from a recipe."""

from __future__ import annotations

import json
import os
import sys

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--recipe", required=True, help="Name of an installed recipe (see dllm recipes), or a .yaml file.")
@click.option("--output", type=click.Path(file_okay=False), help="Folder for the trained model and its checkpoints.")
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint in the output folder.")
@click.option("--dry-run", is_flag=True, help="Print the recipe with the overrides applied, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Report the result as JSON.")
@click.argument("overrides", nargs=-1, metavar="[[SECTION.]KEY=VALUE]...")
@click.pass_context
def command(
    ctx: click.Context,
    recipe: str,
    output: str | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train a model from a recipe.

    SIGTERM and Ctrl-C save a checkpoint behind the step that is running and end with exit code 143 or 130; the same
    command with --resume goes on from there.

    \b
    Examples:
      dllm train --recipe my-recipe --output out
      dllm train --recipe recipe.yaml --output out training.max_steps=100
      dllm train --recipe my-recipe --output out learning_rate=1e-4 --resume
    """
    if output is None and not dry_run:
        raise click.UsageError("Missing option '--output'.")
    from dllm_core.training.recipes import load_recipe

    resolved = load_recipe(recipe, overrides)
    from transformers.utils.logging import disable_progress_bar

    from dllm_core.training.interruption import TrainingInterrupted
    from dllm_core.training.run import check_recipe, train

    if dry_run:
        check_recipe(resolved)
        click.echo(resolved.as_yaml(), nl=False)
        return
    if not sys.stderr.isatty():
        disable_progress_bar()
    try:
        folder = train(resolved, output, resume=resume)
    except TrainingInterrupted as interruption:
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            click.echo(str(interruption), err=True)
        ctx.exit(interruption.exit_code)
    click.echo(json.dumps({"output": str(folder)}) if as_json else f"Trained model in {folder}")
