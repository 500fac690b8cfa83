"""What a shell completes beside commands and options: the names of what is installed.

Without torch: Tab is to answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from dllm_core import registry

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _beginning(incomplete: str, named: Iterable[tuple[str, str]]) -> list[CompletionItem]:
    return [CompletionItem(name, help=summary) for name, summary in named if name.startswith(incomplete)]


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Bundled checkpoints; where none begins so, the folders here."""
    named = [(checkpoint.name, checkpoint.summary) for _, checkpoint in registry.bundled_checkpoints()]
    return _beginning(incomplete, named) or [CompletionItem(incomplete, type="dir")]


def recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Installed recipes, by the name without their plugin as well; where none begins so, the files here."""
    from dllm_core.training.recipes import find_recipes

    named = [(name, "") for full_id in find_recipes() for name in (full_id.partition("/")[2], full_id)]
    return _beginning(incomplete, named) or [CompletionItem(incomplete, type="file")]


def plugins(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Installed plugins, those that did not load among them."""
    from dllm_core.plugins import plugin_host

    return _beginning(incomplete, ((record.name, record.state) for record in plugin_host().records))


def words(*choices: str) -> Complete:
    """A few words that stand fast."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _beginning(incomplete, ((choice, "") for choice in choices))

    return complete


devices = words("auto", "cpu", "cuda", "mps")
dtypes = words("auto", "float32", "bfloat16", "float16")


def device_and_dtype(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that loads a model, --device and --dtype."""
    device = click.option(
        "--device", shell_complete=devices, default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps ..."
    )
    dtype = click.option(
        "--dtype", shell_complete=dtypes, default="auto", show_default=True, help="auto, float32, bfloat16, float16."
    )
    return device(dtype(command))


def components(kind: str) -> Complete:
    """The installed components of a kind, for instance ``sampler``, by name."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _beginning(incomplete, ((one.name, one.spec.summary) for one in registry.components(kind)))

    return complete
