"""`dllm recipes`: the recipes that installed plugins ship."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dllm_core.cli.completing import recipes
from dllm_core.cli.errors import NamingGroup
from dllm_core.cli.plugins import group_says_json, json_option
from dllm_core.errors import UsageError

EPILOG = """\b
Examples:
  dllm recipes
  dllm recipes show RECIPE > own.yaml              and then: dllm train --recipe own.yaml --output out
"""
LIST_EPILOG = """\b
Examples:
  dllm recipes list
  dllm recipes list --json
"""
SHOW_EPILOG = """\b
Examples:
  dllm recipes show RECIPE
  dllm recipes show RECIPE --json                  with its file, and all that it leaves unsaid
"""


@click.group(
    cls=NamingGroup,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the recipes that `dllm train` knows by name."""
    if ctx.invoked_subcommand is None:
        print_recipes(as_json)


@command.command("list", epilog=LIST_EPILOG)
@json_option
@click.pass_context
def list_command(ctx: click.Context, as_json: bool) -> None:
    """List the recipes, as `dllm recipes` does."""
    print_recipes(as_json or group_says_json(ctx))


@command.command("show", epilog=SHOW_EPILOG)
@click.argument("name", shell_complete=recipes)
@json_option
@click.pass_context
def show_command(ctx: click.Context, name: str, as_json: bool) -> None:
    """Print one recipe as it is shipped: a file to start your own from."""
    from dllm_core.training.recipes import load_recipe, recipe_file

    file = recipe_file(name)
    if as_json or group_says_json(ctx):
        click.echo(json.dumps({"file": str(file), **load_recipe(file).as_dict()}, indent=2))
    else:
        click.echo(file.read_text(encoding="utf-8"), nl=False)


def print_recipes(as_json: bool) -> None:
    from dllm_core.training.recipes import find_recipes

    rows = [{"name": full_id, "file": str(file), **_about(file)} for full_id, file in find_recipes().items()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("No installed plugin ships a recipe; dllm train --recipe also takes a .yaml file.")
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:{width}}  {row['summary']}")


def _about(file: Path) -> dict[str, object]:
    """What a listing says of a recipe; one that cannot be read does not hide the others."""
    from dllm_core.training.recipes import load_recipe

    try:
        recipe = load_recipe(file)
    except UsageError as error:
        return {"summary": click.style(f"cannot be read: {error}", fg="red"), "error": str(error)}
    return {
        "summary": recipe.summary,
        "model": recipe.model.checkpoint or recipe.model.adapter,
        "objective": recipe.objective["name"],
    }
