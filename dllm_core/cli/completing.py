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


def components(kind: str) -> Complete:
    """The installed components of a kind, for instance ``sampler``, by name."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _beginning(incomplete, ((one.name, one.spec.summary) for one in registry.components(kind)))

    return complete
