"""`dllm bench`: samplers side by side on one model, in speed, cost and quality.

Whatever can be wrong is said before the model is loaded; what the model cannot do is said before anything is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from dllm_core import registry
from dllm_core.cli.completing import components, device_and_dtype, models
from dllm_core.cli.prompts import Request, parse_record, read_requests
from dllm_core.cli.run import (
    DEFAULT_SAMPLER,
    bundled_checkpoint,
    choose_model,
    default_length,
    demo_requests,
    is_here,
)
from dllm_core.config import at_least, parse_assignments
from dllm_core.errors import DataError, PromptError

if TYPE_CHECKING:
    from dllm_core.evaluation.benchmark import Benchmark
    from dllm_core.evaluation.grid import Cell

RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True)
class BenchArguments:
    """What the command line says; fields are named as the options of `command` are."""

    model: str | None
    prompts_file: Path | None
    samplers: tuple[str, ...]
    assignments: tuple[str, ...]
    varied: tuple[str, ...]
    count: int
    seed: int
    batch_size: int
    repeats: int
    chat: bool | None
    device: str
    dtype: str
    as_json: bool
    output: Path | None
    plot: Path | None


EPILOG = """\b
A prompts file has one JSON object a line, as for dllm run; where a line has an "answer", the text that is generated
counts as right if it is the same to the last character.

\b
Examples:
  dllm bench                                       the installed samplers on a bundled model
  dllm bench --vary steps=8,16,32 --plot steps.png
  dllm bench --vary commit=quota,threshold --vary threshold=0.7,0.9 --count 14
  dllm bench --model FOLDER --prompts-file prompts.jsonl --sampler mdlm --output results
"""


@click.command(
    "bench", epilog=EPILOG, short_help="Compare samplers.", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "-m",
    "--model",
    shell_complete=models,
    help="Hub id, folder, or bundled checkpoint. Default: the first bundled one.",
)
@click.option("--prompts-file", type=click.Path(path_type=Path), metavar="JSONL", help="Default: the model's own.")
@click.option(
    "--sampler",
    "samplers",
    shell_complete=components("sampler"),
    multiple=True,
    metavar="NAME",
    help="May be repeated. Default: see below.",
)
@click.option("-o", "assignments", multiple=True, metavar="KEY=VALUE", help="An option of every sampler that has it.")
@click.option("--vary", "varied", multiple=True, metavar="KEY=A,B", help="Try each value, with each of the others.")
@click.option("--count", type=int, default=28, show_default=True, help="At most so many prompts.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise, and of the model's own prompts.")
@click.option("--batch-size", type=int, default=1, show_default=True, help="Prompts that are generated together.")
@click.option("--repeats", type=int, default=3, show_default=True, help="The times are medians over so many.")
@click.option("--chat/--raw", default=None, help="Prompt through the chat template, or as it is. Default: chat if any.")
@device_and_dtype
@click.option("--json", "as_json", is_flag=True, help="One JSON object: settings, machine, versions, figures, texts.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help=f"Write {RESULTS}.")
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw a .png, .svg or .html."
)
def command(**given: Any) -> None:
    """Measure samplers against one another on the same model and prompts.

    Every combination of --sampler and --vary is run in turn, several times over. Without either, it is every installed
    sampler that is made for any family. An option that a combination does not have (a threshold, where the rule knows
    none) is left out of it.

    \b
    tokens/s    generated tokens before the end of sequence, over wall time
    tok/fwd     of these tokens, how many a call of the model gives
    fwd/s       calls of the model a second
    right       prompts whose answer is right to the last character
    """
    bench(BenchArguments(**given))


def bench(arguments: BenchArguments) -> None:
    """Check, load, measure, report.

    Raises:
        DllmError: whatever is wrong with the arguments, the prompts or the model.
    """
    for name, value in (
        ("count", arguments.count),
        ("batch-size", arguments.batch_size),
        ("repeats", arguments.repeats),
    ):
        at_least(f"--{name}", value, 1)
    model = choose_model(arguments.model)
    requests = list(islice(chosen_requests(arguments, model), arguments.count))
    with ExitStack() as files:
        results, picture = open_files(arguments, files)
        cells = chosen_cells(arguments, model)
        benchmark = load_benchmark(arguments, model, cells, requests)
        measure(benchmark, arguments.repeats)
        report = as_data(benchmark, arguments, model)
        if results is not None:
            results.write(json.dumps(report, indent=2, ensure_ascii=False).encode() + b"\n")
        if picture is not None:
            draw(picture, benchmark, arguments.plot, model)
    show(report, benchmark, arguments)


def open_files(arguments: BenchArguments, files: ExitStack) -> tuple[IO[bytes] | None, IO[bytes] | None]:
    """The results file and the picture, opened before the work; they appear only once they are whole.

    Raises:
        OptionError: one cannot be written.
        PlotsUnavailableError: a picture is wanted, and matplotlib is not there.
    """
    from dllm_core.cli.output import whole_file

    results = picture = None
    if arguments.plot is not None:
        from dllm_core.display import plots

        plots.check(arguments.plot)
        picture = files.enter_context(whole_file(arguments.plot, "--plot"))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        results = files.enter_context(whole_file(arguments.output / RESULTS, "--output"))
    return results, picture


def chosen_requests(arguments: BenchArguments, model: str) -> Iterator[Request]:
    """The prompts of the file, else those that the bundled checkpoint comes with.

    Raises:
        DataError: a line is broken, or its answer is not text.
        PromptError: no file is given and the model is no bundled one.
    """
    for request in _requests(arguments, model):
        if not isinstance(request.extra.get("answer", ""), str):
            raise DataError(f"{request.where}: an answer must be text, got {request.extra['answer']!r}")
        yield request


def _requests(arguments: BenchArguments, model: str) -> Iterator[Request]:
    if arguments.prompts_file is not None:
        yield from read_requests(None, arguments.prompts_file, infill=False)
        return
    found = bundled_checkpoint(model)
    if found is None or not (found.exercises or found.demo_prompts):
        raise PromptError(f"{model!r} brings no prompts; give them with --prompts-file, one JSON object a line")
    if found.exercises is None:
        yield from demo_requests(found)
        return
    from dllm_core.plugins import import_string

    lines = import_string(found.exercises)(arguments.count, arguments.seed)
    yield from (parse_record(line, f"{found.name}, exercise {n}") for n, line in enumerate(lines, start=1))


def chosen_cells(arguments: BenchArguments, model: str) -> list[Cell]:
    """The grid that the command line asks for, every option checked; imports torch.

    Raises:
        UnknownComponentError, OptionError: as `dllm_core.evaluation.grid`.
    """
    fixed = {"seed": arguments.seed} | parse_assignments(arguments.assignments)
    names = [registry.find("sampler", name).full_id for name in arguments.samplers]
    from dllm_core.cli.output import working

    with working("Importing torch"):
        from dllm_core.evaluation.grid import grid, parse_varied

        varied = parse_varied(arguments.varied)
    if not ({"max_length", "max_new_tokens"} & {*fixed, *varied}):
        fixed |= default_length(model)
    if not names:
        names = [registry.find("sampler", DEFAULT_SAMPLER).full_id] if varied else samplers_for_any_family()
    return grid(names, fixed, varied)


def samplers_for_any_family() -> list[str]:
    """Full ids of the installed samplers that no family owns, the default one first."""
    first = registry.find("sampler", DEFAULT_SAMPLER).full_id
    others = [component.full_id for component in registry.components("sampler") if not component.spec.families]
    return [first, *(name for name in others if name != first)]


def load_benchmark(arguments: BenchArguments, model: str, cells: list[Cell], requests: list[Request]) -> Benchmark:
    """The model, the prompts as token ids, and a sampler for every cell that the model can do."""
    from dllm_core.cli.generate import Generation, quieten
    from dllm_core.cli.output import loading
    from dllm_core.evaluation.benchmark import Benchmark, Exercise
    from dllm_core.models import load
    from dllm_core.samplers import sampler

    quieten(bars=is_here(model) or not sys.stderr.isatty())
    with loading(f"Loading {model}", at_once=is_here(model)):
        denoiser = load(model, device=arguments.device, dtype=arguments.dtype)
    encoder = Generation(model, DEFAULT_SAMPLER, sampler(DEFAULT_SAMPLER, denoiser, **default_length(model)))
    encoder.prepare(requests, chat=arguments.chat, system=None)
    exercises = [
        Exercise(one.ids, one.request.kind == "infill", one.request.extra.get("answer")) for one in encoder.prepared
    ]
    return Benchmark(denoiser, cells, exercises, batch_size=arguments.batch_size)


def measure(benchmark: Benchmark, repeats: int) -> None:
    """Run it, with a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(benchmark.measurements) * (repeats + 1))
        for number, what in enumerate(benchmark.run(repeats)):
            progress.update(task, description=what, completed=number)


def as_data(benchmark: Benchmark, arguments: BenchArguments, model: str) -> dict[str, object]:
    """All that is known of the run, for JSON."""
    from dllm_core.evaluation.benchmark import FORMAT, machine

    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "model": model,
        "device": str(benchmark.denoiser.device),
        "dtype": str(benchmark.denoiser.dtype).removeprefix("torch."),
        "prompts": len(benchmark.exercises),
        "prompts_file": None if arguments.prompts_file is None else str(arguments.prompts_file),
        "batch_size": arguments.batch_size,
        "repeats": arguments.repeats,
        "seed": arguments.seed,
        "results": [measurement.as_dict() for measurement in benchmark.measurements],
        "left_out": [each.as_dict() for each in benchmark.left_out],
    }


def show(report: dict[str, object], benchmark: Benchmark, arguments: BenchArguments) -> None:
    """The table on stdout, or the JSON; what was left out and what was written beside it."""
    from rich.console import Console
    from rich.text import Text

    from dllm_core.cli.bench_table import table

    # Where programs read, every message is one line.
    aside = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
    if arguments.as_json:
        print(json.dumps(report, indent=2, ensure_ascii=not sys.stdout.encoding.lower().startswith("utf")))
    else:
        console = Console(highlight=False)
        console.print(table(benchmark.measurements, console.width))
    for each in benchmark.left_out:
        aside.print(Text(f"left out {each.cell.label}: {each.reason}", "yellow"))
    written = [arguments.plot, None if arguments.output is None else arguments.output / RESULTS]
    for path in filter(None, written):
        aside.print(Text(f"wrote {path}", "dim"))


def draw(picture: IO[bytes], benchmark: Benchmark, path: Path, model: str) -> None:
    """Quality against speed; where nothing is right or wrong, tokens a call against calls a second."""
    from dllm_core.cli.bench_table import cells_of, header
    from dllm_core.display import plots

    found = benchmark.measurements
    graded = all(each.accuracy is not None for each in found)
    points = [
        plots.Point(
            label=each.cell.label,
            series=each.cell.sampler,
            x=each.stats.tokens_per_second,
            y=100 * each.accuracy if graded else each.stats.tokens_per_forward,
            y_error=100 * each.standard_error if graded else 0.0,
        )
        for each in found
    ]
    title = f"{model}: {'quality against speed' if graded else 'where the speed comes from'}"
    names = plots.Names(
        title, "tokens/s", "right answers, %" if graded else "tokens per forward pass", 100 if graded else None
    )
    figure = plots.pareto(points, names)
    rows = [header(found), *(cells_of(each, found) for each in found)]
    picture.write(plots.render(figure, path.suffix, title=title, table=rows))
