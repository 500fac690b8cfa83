"""`dllm data`: prepare data sets for training, and look at what is learned of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dllm_core.cli.errors import NamingGroup
from dllm_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dllm_core.data.report import Report

OPTIONS = (
    click.option("--tokenizer", metavar="NAME", help="Model whose tokenizer is used. Default: the first bundled one."),
    click.option(
        "--format", default="auto", show_default=True, help="chat, edits, alpaca, prompt, text, tokens, or auto."
    ),
    click.option("--max-length", type=int, default=1024, show_default=True, help="Longest example, in tokens."),
    click.option("--truncation", default="right", show_default=True, help="right cuts longer ones, filter drops them."),
    click.option("--supervised", default="all", show_default=True, help="Which answers of a chat: all, or the last."),
    click.option("--learn-prompt", is_flag=True, help="Learn prompts too, not only answers."),
    click.option("--insert-eos/--no-insert-eos", default=None, help="End each text. Default: not lines of text files."),
    click.option("--keep-tail", is_flag=True, help="Keep what remains of plain text behind the last whole piece."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the rows held out for evaluation."),
)
LEARNED = ("\u27e6", "\u27e7")  # around learned text, where there is no colour


def with_options(function: Callable) -> Callable:
    """The options that `prepare` and `show` share."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


EPILOG = """\b
Examples:
  dllm data show chats.jsonl                       what is learned of the first three
  dllm data prepare chats.jsonl chats              once; then: dllm train ... data.dataset=chats
"""
PREPARE_EPILOG = """\b
Examples:
  dllm data prepare chats.jsonl chats --max-length 256 --truncation filter
  dllm data prepare "tatsu-lab/alpaca[train:1000]|chats.jsonl" both --tokenizer FOLDER --processes 4
"""
SHOW_EPILOG = """\b
Examples:
  dllm data show chats.jsonl -n 1
  dllm data show "questions.csv[prompt:question,response:answer]" --learn-prompt
"""


@click.group(cls=NamingGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Prepare data sets for training, and look at what is learned of them.

    SPEC names data sets: NAME[key:value,...], several joined by | or +. NAME is a file (json, jsonl, txt, parquet,
    csv), a folder, or a hub id; train:1000 and test:5% limit rows, prompt:COLUMN and the like name columns.
    """


@command.command("prepare", epilog=PREPARE_EPILOG)
@click.argument("spec")
@click.argument("output", type=click.Path(path_type=Path))
@with_options
@click.option("--processes", type=int, default=1, show_default=True, help="Processes that prepare.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def prepare_command(
    spec: str, output: Path, tokenizer: str | None, processes: int, as_json: bool, **chosen: object
) -> None:
    """Turn the data sets of SPEC into examples in the new folder OUTPUT.

    OUTPUT appears only once it is whole. What was left out, and why, is printed and kept in OUTPUT/dllm_data.json.
    """
    from dllm_core.data.folder import check_free, save, tokenizer_fingerprint
    from dllm_core.data.grammar import parse_spec
    from dllm_core.data.prepare import prepare
    from dllm_core.data.rendering import DataOptions

    parts = parse_spec(spec)
    options = DataOptions(**_named(chosen), num_proc=processes)
    check_free(output)
    with _quiet_libraries():
        used = _tokenizer(tokenizer)
        prepared = prepare(parts, used, options)
        save(prepared, output, spec=spec, fingerprint=tokenizer_fingerprint(used))
    _print_report(prepared.report)
    if as_json:
        click.echo(json.dumps({"output": str(output), **prepared.report.as_dict()}, ensure_ascii=False))
    else:
        click.echo(f"Prepared data in {output}")


@command.command("show", epilog=SHOW_EPILOG)
@click.argument("spec")
@with_options
@click.option("--count", "-n", type=click.IntRange(min=1), default=3, show_default=True, help="Examples to show.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an example on stdout.")
def show_command(spec: str, tokenizer: str | None, count: int, as_json: bool, **chosen: object) -> None:
    """Show the first examples of SPEC as a model sees them, with what is learned marked.

    Marked is in green on a terminal, between \u27e6 and \u27e7 elsewhere. Only the rows that are needed are read.
    """
    from dllm_core.data.grammar import parse_spec
    from dllm_core.data.prepare import prepare
    from dllm_core.data.rendering import DataOptions

    with _quiet_libraries():
        used = _tokenizer(tokenizer)
        options = DataOptions(**_named(chosen), streaming=True)
        prepared = prepare(parse_spec(spec), used, options, evaluation_rows=0)
        examples = list(islice(prepared.train, count))
    if not examples:
        _print_report(prepared.report)
        raise DataError(f"no row of {spec!r} makes an example; see the last column above")
    for number, example in enumerate(examples, 1):
        _show(example, used, number, as_json)
    if not as_json:
        _print_report(prepared.report)


def _named(chosen: Mapping[str, object]) -> dict[str, object]:
    """The options of the command line under the names of `DataOptions`."""
    options = {name: value for name, value in chosen.items() if name not in ("learn_prompt", "keep_tail")}
    return {**options, "mask_prompt_loss": not chosen["learn_prompt"], "drop_tail": not chosen["keep_tail"]}


def _tokenizer(name: str | None) -> PreTrainedTokenizerBase:
    from transformers.utils import logging

    from dllm_core.models.arguments import ModelArguments
    from dllm_core.utils import get_tokenizer

    logging.set_verbosity_error()  # it warns of model types that are not its own
    return get_tokenizer(ModelArguments(model_name_or_path=name))


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """The library's progress bars only where somebody sees them."""
    import sys

    from dllm_core.data.sources import import_datasets

    datasets = import_datasets()
    if sys.stderr.isatty():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _print_report(report: Report) -> None:
    from rich.console import Console

    Console(stderr=True).print(report.table())


def _show(example: Mapping[str, list[int]], tokenizer: PreTrainedTokenizerBase, number: int, as_json: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    if as_json:
        click.echo(json.dumps({**example, "text": tokenizer.decode(example["input_ids"])}, ensure_ascii=False))
        return
    console = Console(soft_wrap=True, highlight=False)
    is_coloured = console.is_terminal and not console.no_color
    shown = Text(f"example {number}: {len(example['input_ids'])} tokens", "bold")
    console.print(shown)
    text = Text()
    for is_learned, ids in spans(example):
        piece = tokenizer.decode(ids)
        text.append(
            piece if is_coloured or not is_learned else f"{LEARNED[0]}{piece}{LEARNED[1]}",
            "green" if is_learned else "dim",
        )
    if "source_ids" in example:
        text.append("\nmade from: ", "bold").append(tokenizer.decode(example["source_ids"]), "dim")
    console.print(text, end="\n\n")


def spans(example: Mapping[str, list[int]]) -> Iterator[tuple[bool, list[int]]]:
    """Runs of tokens that are all learned or all context: ``(is learned, token ids)``."""
    from itertools import groupby

    from dllm_core.data.rendering import IGNORED

    pairs = zip(example["input_ids"], example["labels"], strict=True)
    for is_learned, run in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        yield is_learned, [token for token, _ in run]
