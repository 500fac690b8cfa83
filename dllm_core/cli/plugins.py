"""`dllm plugins`: what is installed, in which state, what it provides, and why something did not load."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence

import click

from dllm_core import __version__, registry
from dllm_core.cli import completing, new
from dllm_core.cli.errors import NamingGroup
from dllm_core.errors import UnknownComponentError, did_you_mean
from dllm_core.hookspecs import ModelAdapterSpec, Spec
from dllm_core.plugins import KINDS, PluginRecord, installed_host, plugin_host

HEADINGS = {
    "objective": "objectives",
    "adapter": "model adapters",
    "sampler": "samplers",
    "commit rule": "commit rules",
    "cache policy": "cache policies",
    "eval task": "eval tasks",
    "eval preset": "eval presets",
}
COLOURS = {"ok": "green", "disabled": "yellow"}  # every other state is red

EPILOG = """\b
Examples:
  dllm plugins
  dllm plugins show core                           what the core provides
  dllm plugins new acme --kind sampler             begin one
"""
LIST_EPILOG = """\b
Examples:
  dllm plugins list
  dllm plugins list --json
"""
SHOW_EPILOG = """\b
Examples:
  dllm plugins show core
  dllm plugins show core --json
"""
CHECK_EPILOG = """\b
Examples:
  dllm plugins check PLUGIN
  dllm plugins check PLUGIN --json > report.json
"""

json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


@click.group(
    cls=NamingGroup,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the installed plugins, or explain one."""
    if ctx.invoked_subcommand is None:
        print_plugins(as_json)


command.add_command(new.command)


@command.command("list", epilog=LIST_EPILOG)
@json_option
@click.pass_context
def list_command(ctx: click.Context, as_json: bool) -> None:
    """List the installed plugins, as `dllm plugins` does."""
    print_plugins(as_json or group_says_json(ctx))


@command.command("show", epilog=SHOW_EPILOG)
@click.argument("name", shell_complete=completing.plugins)
@json_option
@click.pass_context
def show_command(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show one plugin's components, or its whole error."""
    record = find_plugin(name)
    if as_json or group_says_json(ctx):
        click.echo(json.dumps([as_data(record, complete=True)], indent=2))
    else:
        click.echo("\n".join(explain(record)))


@command.command("check", epilog=CHECK_EPILOG)
@click.argument("name", shell_complete=completing.plugins)
@json_option
@click.pass_context
def check_command(ctx: click.Context, name: str, as_json: bool) -> None:
    """Run the conformance suite on one plugin; exit code 1 if a check fails."""
    from dllm_core.cli.check import check

    if not check(find_plugin(name), as_json=as_json or group_says_json(ctx)):
        ctx.exit(1)


def find_plugin(name: str) -> PluginRecord:
    """The record of an installed plugin, without the warnings: what is wrong is about to be told.

    Raises:
        UnknownComponentError: there is none of that name.
    """
    records = {record.name: record for record in installed_host().records}
    if name not in records:
        raise UnknownComponentError(
            f"no plugin {name!r} is installed.{did_you_mean(name, records)} Installed: {', '.join(records)}"
        )
    return records[name]


def group_says_json(ctx: click.Context) -> bool:
    """Whether ``--json`` stands before the sub-command's name."""
    return ctx.parent is not None and ctx.parent.params["as_json"]


def print_plugins(as_json: bool) -> None:
    records = plugin_host().records
    if as_json:
        click.echo(json.dumps([as_data(record) for record in records], indent=2))
        return
    rows = [(record.name, record.version, record.state, provides(record)) for record in records]
    for line in table(("NAME", "VERSION", "STATUS", "PROVIDES"), rows, shutil.get_terminal_size((100, 24)).columns):
        click.echo(line)


def provides(record: PluginRecord) -> str:
    """``1 objective, 2 samplers``."""
    counts = {heading: len(record.of(KINDS[kind])) for kind, heading in HEADINGS.items()}
    counts["checkpoints"] = sum(len(spec.bundled) for spec in record.of(ModelAdapterSpec))
    singular = {heading: kind for kind, heading in HEADINGS.items()} | {
        "model adapters": "model adapter",
        "checkpoints": "checkpoint",
    }
    words = [f"{n} {singular[heading] if n == 1 else heading}" for heading, n in counts.items() if n]
    return ", ".join(words) or "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Aligned lines; the last column wraps at `width`, the third, the status, is coloured."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header) - 1)]
    indent = sum(widths) + 2 * len(widths)
    for number, row in enumerate((header, *rows)):
        cells = [cell.ljust(size) for cell, size in zip(row, widths, strict=False)]
        if number:
            cells[2] = click.style(cells[2], fg=COLOURS.get(row[2], "red"))
        first, *more = wrap_items(row[-1], max(width - indent, 20))
        yield "  ".join([*cells, first])
        yield from (" " * indent + line for line in more)


def wrap_items(text: str, width: int) -> list[str]:
    """Lines of at most `width` that break between the items of an enumeration only."""
    items = re.sub(r"(?<!,) ", "\N{NO-BREAK SPACE}", text)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(items, width)]


def explain(record: PluginRecord) -> Iterator[str]:
    """The lines of `dllm plugins show`."""
    colour = COLOURS.get(record.state, "red")
    yield f"{click.style(record.name, bold=True)}  {record.distribution} {record.version}  " + click.style(
        record.state, fg=colour
    )
    yield from facts(
        module=record.target,
        location=record.location or "not found",
        requires=f"{record.requires_core} (this is {__version__})" if record.requires_core else None,
        error=record.error,
    )
    for note in record.notes:
        yield from facts(note=note)
    for kind, heading in HEADINGS.items():
        specs = record.of(KINDS[kind])
        if specs:
            yield f"\n{heading.capitalize()}"
        for spec in specs:
            yield from explain_component(record, spec)
    if record.traceback:
        yield f"\n{record.traceback.rstrip()}"


def explain_component(record: PluginRecord, spec: Spec) -> Iterator[str]:
    yield f"  {click.style(f'{record.name}/{spec.name}', bold=True)}  {spec.summary}"
    adapter = spec if isinstance(spec, ModelAdapterSpec) else None
    yield from facts(
        source=spec.source,
        target=spec.target,
        problem=registry.target_problem(spec),
        serves=f"model_type {', '.join(adapter.model_types)}" if adapter else None,
    )
    for checkpoint in adapter.bundled if adapter else ():
        yield from facts(checkpoint=f"{checkpoint.name}: {checkpoint.summary}")


def facts(**named: str | None) -> Iterator[str]:
    """One indented line for each fact that there is."""
    for name, text in named.items():
        if text:
            yield f"    {name:<11}{text}"


def as_data(record: PluginRecord, complete: bool = False) -> dict[str, object]:
    """A plugin as JSON data; `complete` adds the traceback and looks for each target."""
    data: dict[str, object] = {
        "name": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "module": record.target,
        "location": record.location,
        "requires_core": record.requires_core,
        "status": record.state,
        "error": record.error,
        "notes": list(record.notes),
        "components": [
            component_data(record, kind, spec, complete) for kind in KINDS for spec in record.of(KINDS[kind])
        ],
    }
    return data | {"traceback": record.traceback} if complete else data


def component_data(record: PluginRecord, kind: str, spec: Spec, complete: bool) -> dict[str, object]:
    data: dict[str, object] = {
        "id": f"{record.name}/{spec.name}",
        "kind": kind,
        "summary": spec.summary,
        "source": spec.source,
        "target": spec.target,
    }
    if isinstance(spec, ModelAdapterSpec):
        data["model_types"] = list(spec.model_types)
        data["checkpoints"] = [{"name": entry.name, "summary": entry.summary} for entry in spec.bundled]
    return data | {"problem": registry.target_problem(spec)} if complete else data
