"""How an error is written: on one line for programs, broken between words where a terminal would break inside them."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import TextIO

import click

from dllm_core.errors import did_you_mean


class NamingGroup(click.Group):
    """A group that names its commands where one is asked for that it has not."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            raise click.UsageError(
                f"No such command {args[0]!r}.{did_you_mean(args[0], names)} Commands: {', '.join(names)}", ctx
            )
        return super().resolve_command(ctx, args)


def explained(error: click.ClickException) -> click.ClickException:
    """The error, which says of a missing option what its help says."""
    if isinstance(error, click.MissingParameter) and isinstance(error.param, click.Option) and not error.message:
        error.message = error.param.help
    return error


def say_error(text: str) -> None:
    """Write an error to stderr."""
    print(fitted(text, sys.stderr), file=sys.stderr)


def fitted(text: str, stream: TextIO) -> str:
    """The text as it is to be written there.

    Words that are longer than a line, such as paths, are left whole, so that they can be copied.
    """
    if not stream.isatty():
        return text
    width = terminal_width(stream)
    return "\n".join(_broken(line, width) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    return textwrap.fill(
        line, width, break_long_words=False, break_on_hyphens=False, drop_whitespace=True, replace_whitespace=False
    )


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal behind a stream; 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80
