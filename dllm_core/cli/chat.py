"""`dllm chat`: talk with a model, line after line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from dllm_core import registry
from dllm_core.cli.completing import components, device_and_dtype, models
from dllm_core.cli.errors import fitted, say_error
from dllm_core.cli.line_editing import remembered_lines
from dllm_core.cli.run import SamplerChoice, choose_model, default_length, load_model, wants_view
from dllm_core.config import parse_assignments
from dllm_core.errors import DllmError, PromptError

if TYPE_CHECKING:
    from dllm_core.cli.conversation import Conversation

EPILOG = """\b
Examples:
  dllm chat                                        with a bundled model
  dllm chat --system "Answer in one word." -o steps=16
  echo "12+30=" | dllm chat                        one line, one answer
"""
PROMPT = "> "


@click.command(
    "chat", epilog=EPILOG, short_help="Talk with a model.", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "-m",
    "--model",
    shell_complete=models,
    help="Hub id, folder, or bundled checkpoint. Default: the first bundled one.",
)
@click.option(
    "--sampler",
    shell_complete=components("sampler"),
    metavar="NAME",
    help="Default: the one made for the model's family, else mdlm.",
)
@click.option("-o", "assignments", multiple=True, metavar="KEY=VALUE", help="A sampler option; may be repeated.")
@click.option("--system", metavar="TEXT", help="System message.")
@device_and_dtype
@click.option("--live/--no-live", default=None, help="Watch the text appear. Default: on a terminal.")
def command(
    model: str | None,
    sampler: str | None,
    assignments: tuple[str, ...],
    system: str | None,
    device: str,
    dtype: str,
    live: bool | None,
) -> None:
    """Talk with a model; /help lists what else a line can be. Ctrl-C stops an answer, Ctrl-D leaves."""
    options = parse_assignments(assignments)
    shown = wants_view(live, by_default=sys.stdout.isatty())
    chosen = registry.find("sampler", sampler or "mdlm").full_id
    name = choose_model(model)
    if "max_length" not in options:
        options = default_length(name) | options
    generation = load_model(name, SamplerChoice(chosen, sampler is not None), options, device=device, dtype=dtype)
    if generation.denoiser.tokenizer.chat_template is None:
        raise PromptError(
            f"{name} has no chat template, so it was not trained to answer; "
            f"let it continue a text: dllm run --model {name} 'your text'"
        )

    from dllm_core.cli.conversation import Conversation

    converse(Conversation(generation.sampler, generation.sampler_name, options, system, shown), name)


def converse(conversation: Conversation, model: str) -> None:
    """Read lines until there are no more, and answer each."""
    from dllm_core.cli.conversation import COMMANDS

    if not sys.stdin.isatty():
        answer_lines(conversation)
        return
    print(fitted(f"{model}. /help lists the commands, Ctrl-D leaves.", sys.stderr), file=sys.stderr)
    with remembered_lines(COMMANDS):
        answer_lines(conversation)


def answer_lines(conversation: Conversation) -> None:
    """Answer each line until there are no more."""
    from dllm_core.cli.conversation import obey, show

    while (line := next_line()) not in (None, "/quit"):
        try:
            if line:
                show(obey(conversation, line) if line.startswith("/") else conversation.say(line))
        except KeyboardInterrupt:
            print("\n(stopped; this turn is not kept)", file=sys.stderr)
        except DllmError as error:
            say_error(f"Error: {error}")


def next_line() -> str | None:
    """The next line without blanks around it; None at the end of the input."""
    while True:
        try:
            return (input(PROMPT) if sys.stdin.isatty() else input()).strip()
        except KeyboardInterrupt:
            print(file=sys.stderr)  # Ctrl-C at the prompt drops the line, as in a shell
        except EOFError:
            return None
