"""`dllm train`: train a model from a recipe."""

from __future__ import annotations

import json
import sys

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--recipe", required=True, help="Name of an installed recipe, or a .yaml file.")
@click.option("--output", type=click.Path(file_okay=False), help="Folder for the trained model and its checkpoints.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in the output folder.")
@click.option("--dry-run", is_flag=True, help="Print the recipe with the overrides applied, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Report the result as JSON.")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
def command(
    recipe: str, output: str | None, resume: bool, dry_run: bool, as_json: bool, overrides: tuple[str, ...]
) -> None:
    """Train a model from a recipe.

    \b
    Examples:
      dllm train --recipe my-recipe --output out
      dllm train --recipe recipe.yaml --output out training.max_steps=100
    """
    if output is None and not dry_run:
        raise click.UsageError("Missing option '--output'.")
    from dllm_core.training.recipes import load_recipe

    resolved = load_recipe(recipe, overrides)
    from transformers.utils.logging import disable_progress_bar

    from dllm_core.training.run import check_recipe, train

    if dry_run:
        check_recipe(resolved)
        click.echo(resolved.as_yaml(), nl=False)
        return
    if not sys.stderr.isatty():
        disable_progress_bar()
    folder = train(resolved, output, resume=resume)
    click.echo(json.dumps({"output": str(folder)}) if as_json else f"Trained model in {folder}")
