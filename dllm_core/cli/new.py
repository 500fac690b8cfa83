"""`dllm plugins new`: write a plugin package that works, to be changed from there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from dllm_core.cli.completing import words
from dllm_core.errors import OptionError
from dllm_core.plugins import installed_host
from dllm_core.scaffold import KINDS, plugin_name, write_package

EPILOG = """\b
Examples:
  dllm plugins new acme --kind sampler             and then: cd dllm-acme && pip install -e ".[test]" && pytest
  dllm plugins new acme-exam --kind task --output plugins
"""
# What shows the new component at work.
TRY = {
    "sampler": 'dllm run --sampler {name} "your text"',
    "objective": "dllm train --recipe FILE        with 'objective: {name}' in it",
    "adapter": "dllm run --model FOLDER         of a checkpoint whose config.json says model_type {name}",
    "task": "dllm plugins show {name}",
}


@click.command("new", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@click.option(
    "--kind",
    required=True,
    metavar="|".join(KINDS),
    shell_complete=words(*KINDS),
    help="What the plugin is to offer.",
)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=".", help="Folder to write into. [default: .]"
)
def command(name: str, kind: str, output: Path) -> None:
    """Write the package dllm-NAME: a small plugin that installs, works and passes its own tests."""
    name = plugin_name(name)
    check_free(name)
    written = write_package(name, kind, output)
    click.echo("\n".join(report(name, kind, output / f"dllm-{name}", written)))


def check_free(name: str) -> None:
    """Raise where a plugin of that name is installed: of two with one name neither is loaded.

    Raises:
        OptionError: there is one.
    """
    for record in installed_host().records:
        if record.name == name:
            raise OptionError(
                f"a plugin {name!r} is installed ({record.distribution} {record.version}), and of two with one name "
                "neither is loaded; choose another name"
            )


def report(name: str, kind: str, folder: Path, written: Sequence[Path]) -> Iterator[str]:
    """What was written, and what to do next."""
    yield f"{folder}: a plugin with {'an' if kind[0] in 'aeiou' else 'a'} {kind} that works"
    yield from (f"  {path.relative_to(folder)}" for path in written)
    yield ""
    yield "Next:"
    yield f"  cd {folder}"
    yield '  pip install -e ".[test]"'
    yield "  pytest"
    yield f"  dllm plugins check {name}"
    yield f"  {TRY[kind].format(name=name)}"
