"""Writes what can be derived: the command line reference, and the README's tables of families and of parts.

python docs/generate.py

tests/test_docs.py holds both against this, so they cannot drift.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from dllm_core import registry
from dllm_core.cli import root
from dllm_core.hookspecs import ModelAdapterSpec
from dllm_core.models import ModelAdapter
from dllm_core.samplers import parts

ROOT = Path(__file__).parents[1]
CLI = ROOT / "docs/cli.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- written by docs/generate.py -->\n", "<!-- end -->\n"
WIDTH = 100


def commands(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    """(full name, help text) of a command and of all below it."""
    context = command.make_context(name, [], parent, resilient_parsing=True, terminal_width=WIDTH)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from commands(command.get_command(context, child), context, child)


def cli_reference() -> str:
    """docs/cli.md: the help of every command."""
    intro = """\
# Command line

What `--help` says, written by `docs/generate.py`. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted
(Ctrl-C), 143 stopped by SIGTERM; a training that ended with 130 or 143 saved a checkpoint and goes on with `--resume`.
"""
    parts = [f"\n## {name}\n\n```text\n{text.rstrip()}\n```\n" for name, text in commands(root, None, "dllm")]
    return intro + "".join(parts)


def families() -> Iterator[tuple[ModelAdapterSpec, type[ModelAdapter]]]:
    """Every family of this repository's plugins, and what its adapter declares."""
    for component in _own("adapter"):
        yield component.spec, registry.load("adapter", component.full_id)


def served(kind: str, adapter: type[ModelAdapter]) -> list[str]:
    """The samplers or objectives, of all plugins, that need nothing that the family does not declare."""
    return [
        component.name
        for component in _own(kind)
        if all(getattr(adapter, capability, False) for capability in _needs(kind, component))
        and (not adapter.logits_are_shifted or _serves_shifted_logits(kind, component))
    ]


def _own(kind: str) -> list[registry.Component]:
    """Components of this repository, whatever else is installed."""
    return [
        component
        for component in registry.components(kind)
        if component.plugin == "core" or (ROOT / f"plugins/dllm-{component.plugin}").is_dir()
    ]


def _needs(kind: str, component: registry.Component) -> tuple[str, ...]:
    target = registry.load(kind, component.full_id)
    if kind == "objective":
        return target.needs
    chosen = component.spec.defaults.get("cache", "none")  # a family without keys to keep goes without where it is free
    return (*parts.needs(registry.load("cache policy", chosen), target.attention), *target.demands.capabilities)


def _serves_shifted_logits(kind: str, component: registry.Component) -> bool:
    return kind != "sampler" or registry.load(kind, component.full_id).demands.shifted_logits


def support_table() -> str:
    """Markdown: one row a family, one column a kind of part that does or does not serve it."""
    header = "| family | `model_type` | generate and infill | train | KV cache | block-causal attention | ships |\n"
    rows = [
        f"| `{spec.name}` | {_code(spec.model_types)} | {_all_but('sampler', adapter)} | "
        f"{_all_but('objective', adapter)} | "
        f"{_yes(adapter.supports_kv_cache)} | {_yes(adapter.supports_block_causal)} | "
        f"{_code(checkpoint.name for checkpoint in spec.bundled) or '-'} |\n"
        for spec, adapter in families()
    ]
    return header + "|---" * 7 + "|\n" + "".join(rows)


def _all_but(kind: str, adapter: type[ModelAdapter]) -> str:
    """What serves a family, said by the few that do not."""
    names = served(kind, adapter)
    others = [component.name for component in _own(kind) if component.name not in names]
    if len(others) >= len(names):
        return _code(names) or "-"
    return f"all but {_code(others)}" if others else "all"


def parts_table() -> str:
    """Markdown: one row a part that is no family, and of families the presets."""
    header = "| part | name | plugin | what it does |\n" + "|---" * 4 + "|\n"
    rows = [
        f"| {kind} | `{component.name}` | `{component.plugin}` | {component.spec.summary} |\n"
        for kind in ("sampler", "commit rule", "cache policy", "objective", "eval task", "eval preset")
        for component in _own(kind)
    ]
    return header + "".join(rows)


def with_support_table(text: str) -> str:
    """The README with the tables between its marks brought up to date."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n" + support_table() + "\n" + parts_table() + "\n" + END + after


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _yes(is_declared: bool) -> str:
    return "yes" if is_declared else "no"


if __name__ == "__main__":
    CLI.write_text(cli_reference(), encoding="utf-8")
    README.write_text(with_support_table(README.read_text(encoding="utf-8")), encoding="utf-8")
