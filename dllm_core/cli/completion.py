"""`dllm completion`: the script that lets a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_DLLM_COMPLETE"  # click's own choice for a program called dllm
EPILOG = """\b
Examples:
  dllm completion bash >> ~/.bashrc
  dllm completion zsh >> ~/.zshrc                  below the line that calls compinit
  dllm completion fish > ~/.config/fish/completions/dllm.fish
"""


@click.command(
    "completion",
    epilog=EPILOG,
    short_help="Complete commands in a shell.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete dllm's commands and options with Tab."""
    print(get_completion_class(shell)(context.find_root().command, {}, "dllm", VARIABLE).source())
