"""`dllm edit`: mend a file with a model that inserts, deletes and substitutes, and leave all else as it is.

Everything that can be checked without the model is checked before it is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dllm_core import registry
from dllm_core.cli.completing import device_and_dtype
from dllm_core.cli.run import wants_view
from dllm_core.config import at_least, one_of, parse_assignments
from dllm_core.errors import ModelLoadError, OptionError, PromptError, UnknownComponentError

if TYPE_CHECKING:
    from dllm_core.editing import Span

FORMS = ("patch", "file", "json")
EPILOG = """\b
Examples:
  dllm edit notes.py                                  print a patch: what the model would change
  dllm edit notes.py --lines 4:9 --write --log notes.log
  dllm edit notes.py --suspicion                      where would it edit? one pass of the model
  dllm edit notes.py --undo notes.log --write         take the edits of a log back
"""


@dataclass(frozen=True, kw_only=True)
class EditArguments:
    """What the command line says. Fields are named as the options of `command` are."""

    file: Path
    model: str | None
    sampler: str | None
    lines: tuple[str, ...]
    protect: tuple[str, ...]
    instruction: str | None
    max_edits: int | None
    seed: int | None
    assignments: tuple[str, ...]
    form: str
    write: bool
    log: Path | None
    suspicion: bool
    replay: Path | None
    undo: Path | None
    live: bool | None
    device: str
    dtype: str


@click.command(
    "edit", epilog=EPILOG, short_help="Mend a file.", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-m", "--model", help="Folder, hub id or bundled checkpoint with edit heads. Default: a bundled one.")
@click.option("--sampler", metavar="NAME", help="One that edits. Default: the first that does.")
@click.option("--lines", multiple=True, metavar="A:B", help="Edit these lines only, from 1; may be repeated.")
@click.option("--protect", multiple=True, metavar="A:B", help="Leave these lines alone; may be repeated.")
@click.option("--instruction", metavar="TEXT", help="What to do, as a chat message above the file.")
@click.option("--max-edits", type=int, help="Make no more edits than this.")
@click.option("--seed", type=int, help="Of the noise, where there is any.  [default: 0]")
@click.option("-o", "assignments", multiple=True, metavar="KEY=VALUE", help="A sampler option; may be repeated.")
@click.option("--output", "form", default="patch", show_default=True, help="patch, file (the whole text), or json.")
@click.option("--write", is_flag=True, help="Change FILE itself.")
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), help="Write every edit to this file.")
@click.option("--suspicion", is_flag=True, help="Change nothing: show where the model would edit.")
@click.option("--replay", type=click.Path(path_type=Path), metavar="LOG", help="Make the edits of a log again.")
@click.option("--undo", type=click.Path(path_type=Path), metavar="LOG", help="Take the edits of a log back.")
@click.option("--live/--no-live", default=None, help="Watch the edits. Default: on a terminal.")
@device_and_dtype
def command(**given: Any) -> None:
    """Mend FILE with a model that inserts, deletes and substitutes.

    What is not edited stays as it is, byte for byte. Prints a patch that 'git apply' takes.
    """
    edit(EditArguments(**given))


def edit(arguments: EditArguments) -> None:
    """Check everything that can be, then edit, replay or undo.

    Raises:
        DllmError: whatever is wrong with the arguments, the file or the model.
    """
    check_arguments(arguments)
    text = read_text(arguments.file)
    if arguments.replay is not None or arguments.undo is not None:
        from dllm_core.cli.editing import report
        from dllm_core.editing import read_log, replay, undo

        path = arguments.undo or arguments.replay
        report(arguments, text, (undo if arguments.undo else replay)(read_log(path), text))
        return
    regions, protected = spans_of(arguments, text)
    options = sampler_options(arguments)
    live = wants_view(arguments.live, by_default=arguments.form != "json" and not arguments.suspicion)
    sampler = choose_sampler(arguments.sampler)
    model = choose_model(arguments.model, sampler.partition("/")[0])

    from dllm_core.cli.editing import run_edit, show_suspicion

    run = show_suspicion if arguments.suspicion else run_edit
    run(arguments, text, regions, protected, model=model, sampler=sampler, options=options, live=live)


def check_arguments(arguments: EditArguments) -> None:
    """Raise where options do not go together.

    Raises:
        OptionError: which ones.
    """
    one_of("--output", arguments.form, FORMS)
    if arguments.max_edits is not None:
        at_least("--max-edits", arguments.max_edits, 0)
    ways = {"--replay": arguments.replay, "--undo": arguments.undo, "--suspicion": arguments.suspicion}
    given = [flag for flag, value in ways.items() if value]
    if len(given) > 1:
        raise OptionError(f"{' and '.join(given)} exclude each other; give one of them")
    if given and arguments.log is not None:
        raise OptionError(f"--log records the edits of a model, and {given[0]} makes none; leave it out")
    if arguments.suspicion and arguments.write:
        raise OptionError("--suspicion changes nothing; leave out --write")


def read_text(path: Path) -> str:
    """The text of a file, line ends as they are.

    Raises:
        PromptError: it cannot be read, is empty, or is no text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}; give a text file") from error
    if not data:
        raise PromptError(f"{path} is empty, so there is nothing to edit; write a text with: dllm run")
    if b"\0" in data:
        raise PromptError(f"{path} is a binary file; give a text in UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte {error.start} (0x{data[error.start]:02x})"
        raise PromptError(f"{path} is no text in UTF-8: {place} cannot be read; convert it first") from error


def spans_of(arguments: EditArguments, text: str) -> tuple[list[Span], list[Span]]:
    """The characters that may change, and those that must not.

    The last line break of a file stays, unless lines are named.

    Raises:
        OptionError: no such lines, or lines that are both named and protected.
    """
    from dllm_core.editing import Span, line_span

    named = [_lines("--lines", each) for each in arguments.lines]
    kept = [_lines("--protect", each) for each in arguments.protect]
    for first, last in named:
        for begin, end in kept:
            if begin <= first and last <= end:
                raise OptionError(
                    f"--lines {first}:{last} lie within --protect {begin}:{end}; nothing there may change"
                )
    for one, other in zip(sorted(kept), sorted(kept)[1:], strict=False):
        if other[0] <= one[1]:
            raise OptionError(f"--protect {one[0]}:{one[1]} and {other[0]}:{other[1]} overlap; join them")
    regions = [line_span(text, *each, flag="--lines") for each in named]
    protected = [line_span(text, *each, flag="--protect") for each in kept]
    return regions or [Span(0, len(text.removesuffix("\n").removesuffix("\r")))], protected


def _lines(flag: str, value: str) -> tuple[int, int]:
    first, colon, last = value.partition(":")
    try:
        return int(first), int(last if colon else first)
    except ValueError:
        raise OptionError(f"{flag} {value!r} must be two line numbers, for example {flag} 10:20") from None


def sampler_options(arguments: EditArguments) -> dict[str, object]:
    """The sampler options of the flags and of ``-o``.

    Raises:
        OptionError: one is given both ways.
    """
    options = parse_assignments(arguments.assignments)
    for name in ("max_edits", "seed"):
        value = getattr(arguments, name)
        if value is not None and name in options:
            raise OptionError(f"--{name.replace('_', '-')} and -o {name}=... are the same option; give one of them")
        options |= {} if value is None else {name: value}
    return options


def choose_sampler(name: str | None) -> str:
    """The full id of the sampler that was named, else of the first that edits.

    Raises:
        UnknownComponentError: none edits, or not the one that was named.
    """
    if name is not None:
        found = registry.find("sampler", name).full_id
        if not hasattr(registry.load("sampler", found), "start_edit"):
            raise UnknownComponentError(f"sampler {found!r} does not edit texts; leave out --sampler for one that does")
        return found
    for component in registry.components("sampler"):
        if component.spec.edits:
            return component.full_id
    raise UnknownComponentError(
        "no installed plugin brings a sampler that edits; 'dllm plugins' lists what is installed."
        + registry.missing_plugins_hint()
    )


def choose_model(name: str | None, plugin: str) -> str:
    """The model that was named, else the checkpoint that the sampler's plugin ships.

    Raises:
        ModelLoadError: none is named, and it ships none.
    """
    if name is not None:
        return name
    for owner, checkpoint in registry.bundled_checkpoints():
        if owner == plugin:
            return checkpoint.name
    raise ModelLoadError(f"plugin {plugin!r} ships no checkpoint; name a model with edit heads with --model")


def relative_name(path: Path) -> str:
    """The name of a file in a patch: from the current folder where it is in there."""
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    return absolute.relative_to(here).as_posix() if absolute.is_relative_to(here) else path.name
