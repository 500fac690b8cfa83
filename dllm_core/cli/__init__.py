"""The command `dllm`: a table of commands, each imported only when it is called."""

from __future__ import annotations

import importlib
import io
import os
import sys
from types import TracebackType
from typing import Any

import click

from dllm_core import __version__
from dllm_core.cli.errors import NamingGroup, explained, say_error
from dllm_core.errors import DllmError
from dllm_core.plugins import debugging, one_line

# Name -> (import string, short help). The help stands here so that `dllm --help` imports no command.
COMMANDS = {
    "run": ("dllm_core.cli.run:command", "Generate text; alone, show a bundled model at work."),
    "chat": ("dllm_core.cli.chat:command", "Talk with a model."),
    "edit": ("dllm_core.cli.edit:command", "Mend a file: insert, delete and substitute."),
    "visualize": ("dllm_core.cli.visualize:command", "Replay a trace of run, or draw it, or a training's curves."),
    "train": ("dllm_core.cli.train:command", "Train a model from a recipe."),
    "eval": ("dllm_core.cli.eval:command", "Score a model on tasks, or on the table of a paper."),
    "data": ("dllm_core.cli.data:command", "Prepare data sets, and look at what is learned of them."),
    "recipes": ("dllm_core.cli.recipes:command", "List the recipes that train knows by name."),
    "convert": ("dllm_core.cli.convert:command", "Turn an autoregressive model into a diffusion model."),
    "merge": ("dllm_core.cli.merge:command", "Merge a LoRA adapter into its base."),
    "bench": ("dllm_core.cli.bench:command", "Compare samplers in speed, cost and quality."),
    "completion": ("dllm_core.cli.completion:command", "Print the script that completes commands in a shell."),
    "plugins": ("dllm_core.cli.plugins:command", "List what is installed, and explain what did not load."),
}
INTERRUPTED = 130  # 128 + SIGINT, as shells count


class LazyGroup(NamingGroup):
    """A group whose commands are import strings; help prints the short help that stands beside them.

    click's own group would import every command to print its help.
    """

    def __init__(self, table: dict[str, tuple[str, str]], **attributes: Any) -> None:
        super().__init__(**attributes)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            return None
        module, _, attribute = self.table[name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short_help) for name, (_, short_help) in self.table.items()])


EPILOG = """\b
DLLM_PLUGINS=a,b loads only these plugins, an empty value none.
DLLM_DEBUG=1 shows tracebacks.

\b
Examples:
  dllm run                                         a bundled model at work
  dllm run "reverse planet" --steps 8
  dllm plugins show core                           what the core provides
"""

root = LazyGroup(
    COMMANDS,
    name="dllm",
    help="Train, sample and evaluate diffusion language models.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
root = click.version_option(__version__, prog_name="dllm", message="%(prog)s %(version)s")(root)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Training that a signal stopped behind a checkpoint ends with 128 + the signal: 143 after SIGTERM, 130 after Ctrl-C.
    """
    if not debugging():
        sys.excepthook = _say_unexpected
    try:
        outcome = root.main(arguments, prog_name="dllm", standalone_mode=False)
        sys.stdout.flush()  # here, where a closed pipe can still be met
    except click.ClickException as error:
        shown = io.StringIO()
        explained(error).show(shown)
        say_error(shown.getvalue().rstrip("\n"))
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except DllmError as error:
        if debugging():
            raise
        say_error(f"Error: {error}")
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone (`dllm ... | head`); Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return outcome if isinstance(outcome, int) else 0  # click hands back the code of `ctx.exit(code)`


def _say_unexpected(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """One line for an error that nobody foresaw; Python then exits with 1."""
    if kind is not KeyboardInterrupt:
        say_error(f"Error: {one_line(error)}   [DLLM_DEBUG=1 shows where]")
