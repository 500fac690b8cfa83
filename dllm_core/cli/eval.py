"""`dllm eval`: scores of a model on lm-eval's tasks and those of plugins, or the table of a paper by its preset."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dllm_core import registry
from dllm_core.cli.completing import components, device_and_dtype, models
from dllm_core.cli.run import DEFAULT_SAMPLER, is_here
from dllm_core.config import at_least, parse_assignments
from dllm_core.errors import OptionError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from dllm_core.display.trace import Trace
    from dllm_core.evaluation.bridge import DiffusionLM
    from dllm_core.evaluation.plan import Preset, TaskPlan
    from dllm_core.evaluation.runner import TaskResult

RESULTS, PAGE = "results.json", "index.html"
DEFAULT_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """What the command line says; fields are named as the options of `command` are."""

    model: str | None
    tasks: tuple[str, ...]
    preset: str | None
    sampler: str | None
    assignments: tuple[str, ...]
    num_fewshot: int | None
    limit: int | None
    chat: bool | None
    system: str | None
    batch_size: int | None
    mc_num: int | None
    levels: str | None
    likelihood: str | None
    add_bos: bool | None
    seed: int
    device: str
    dtype: str
    data_dir: Path | None
    include: tuple[Path, ...]
    output: Path | None
    log_samples: bool
    trace_samples: int
    compare: tuple[Path, ...]
    allow_code_execution: bool
    dry_run: bool
    as_json: bool


EPILOG = """\b
With --output an interrupted run goes on where it stopped when the same command is given again.

\b
Examples:
  dllm eval --preset PRESET                        the table of a paper or README
  dllm eval --preset PRESET --dry-run              what it would cost
  dllm eval --model FOLDER --tasks TASK --num-fewshot 2 -o block_size=32 --output out
  dllm eval --model FOLDER --tasks TASK --limit 100 --log-samples --output small
  accelerate launch -m dllm_core eval --model FOLDER --tasks TASK --output out
"""


@click.command(
    "eval", epilog=EPILOG, short_help="Evaluate a model.", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "-m",
    "--model",
    shell_complete=models,
    help="Hub id, folder, or bundled checkpoint. Default: the preset's, else a bundled one.",
)
@click.option("--tasks", multiple=True, metavar="A,B", help="Names of tasks or groups; of a preset, only these.")
@click.option(
    "--preset",
    shell_complete=components("eval preset"),
    metavar="NAME",
    help="Tasks and settings of a paper, with the scores it published.",
)
@click.option(
    "--sampler", shell_complete=components("sampler"), metavar="NAME", help="Default: the family's own, else mdlm."
)
@click.option("-o", "assignments", multiple=True, metavar="KEY=VALUE", help="A sampler option; may be repeated.")
@click.option("--num-fewshot", type=int, metavar="N", help="Examples in front of each question. Default: the task's.")
@click.option("--limit", type=int, metavar="N", help="Only the first N documents of each task.")
@click.option("--chat/--raw", default=None, help="Prompt through the chat template, or as it is. Default: the task's.")
@click.option("--system", metavar="TEXT", help="System message of chats.")
@click.option("--batch-size", type=int, metavar="N", help="Prompts that are generated together. Default: 8.")
@click.option("--mc-num", type=int, metavar="N", help="Masked copies of each likelihood. Default: 128.")
@click.option("--levels", metavar="NAME", help="How they are drawn: stratified, antithetic, plain.")
@click.option("--likelihood", metavar="KIND", help="masked, or block for block diffusion. Default: the sampler's.")
@click.option("--add-bos/--no-bos", default=None, help="Beginning-of-sequence token. Default: as the tokenizer does.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all noise.")
@device_and_dtype
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="Local files: NAME/SPLIT.jsonl.")
@click.option("--include", multiple=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder of own tasks.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help=f"Write {RESULTS} and {PAGE}."
)
@click.option("--log-samples", is_flag=True, help="Write prompts and answers too; needs --output.")
@click.option("--trace-samples", type=int, default=0, metavar="N", help="Steps of N answers a task, on the page.")
@click.option(
    "--compare", multiple=True, type=click.Path(path_type=Path), metavar="DIR", help="Show runs side by side."
)
@click.option("--allow-code-execution", is_flag=True, help="Run what the model writes, in a jail, to score code tasks.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and what it costs in forward passes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def command(**given: Any) -> None:
    """Evaluate a model on tasks of lm-eval and of plugins.

    Generated answers come from the sampler; likelihoods are estimated by Monte Carlo over masks, or exactly where there
    are few, and reported with their standard errors.
    """
    evaluate(EvalArguments(**given))


def evaluate(arguments: EvalArguments) -> None:
    """Check, load, run, report.

    Raises:
        DllmError: whatever is wrong with the arguments, the tasks, their data or the model.
    """
    check(arguments)
    from dllm_core.evaluation.registration import check_installed

    check_installed()
    if arguments.compare:
        from dllm_core.cli.eval_compare import compare

        compare(arguments.compare, arguments.output, as_json=arguments.as_json)
        return
    preset = chosen_preset(arguments)
    plans = preset.plans if preset else chosen_plans(arguments)
    model = arguments.model or (preset.model if preset else first_checkpoint())
    manager = task_manager(arguments, plans)
    if arguments.dry_run:
        dry_run(arguments, model, preset, plans, manager)
        return
    from dllm_core.cli.eval_page import eval_page
    from dllm_core.evaluation.code_tasks import refuse_code
    from dllm_core.evaluation.processes import leave, rank_and_size
    from dllm_core.evaluation.report import show

    if not arguments.allow_code_execution:
        refuse_code(manager, [plan.task for plan in plans])
    lm = load_model(arguments, model, preset)
    results, traces = run_plans(arguments, lm, model, plans, manager)
    if rank_and_size()[0] == 0:
        report = as_data(arguments, lm, model, preset, results)
        if arguments.output is not None:
            write_results(arguments, report, results)
            page = eval_page(report, results, traces, tolerance=preset.tolerance if preset else None)
            write_whole(arguments.output / PAGE, page)
        if arguments.as_json:
            click.echo(json.dumps(report, indent=2, default=str))
        else:
            show(results, tolerance=preset.tolerance if preset else None)
    leave()


def first_checkpoint() -> str:
    """The first bundled checkpoint. Raises OptionError where no plugin ships one."""
    bundled = registry.bundled_checkpoints()
    if not bundled:
        raise OptionError("no installed plugin ships a checkpoint; name a model with --model (a folder or a hub id)")
    plugin, checkpoint = bundled[0]
    return f"{plugin}/{checkpoint.name}"


def check(arguments: EvalArguments) -> None:
    """Raise OptionError for what can be refused before anything is imported."""
    for name in ("limit", "batch_size", "mc_num"):
        value = getattr(arguments, name)
        if value is not None:
            at_least("--" + name.replace("_", "-"), value, 1)
    if arguments.compare and (arguments.tasks or arguments.preset):
        raise OptionError("--compare shows runs that are done; give it without --tasks and --preset")
    if not (arguments.tasks or arguments.preset or arguments.compare):
        raise OptionError("nothing to evaluate; name --tasks or a --preset ('dllm plugins' lists both)")
    if arguments.log_samples and arguments.output is None:
        raise OptionError("--log-samples writes files; say where with --output")
    at_least("--trace-samples", arguments.trace_samples, 0)
    if arguments.trace_samples and arguments.output is None:
        raise OptionError("--trace-samples is for the page that --output DIR writes; give it too")
    if arguments.data_dir is not None and not arguments.data_dir.is_dir():
        raise OptionError(f"--data-dir {arguments.data_dir} is no folder")


def options_of(arguments: EvalArguments) -> dict[str, object]:
    """Sampler options of ``-o`` with the flags for likelihoods."""
    flags = {"mc_num": arguments.mc_num, "levels": arguments.levels}
    return parse_assignments(arguments.assignments) | {name: v for name, v in flags.items() if v is not None}


def task_names(arguments: EvalArguments) -> list[str]:
    """The names of ``--tasks``, repeated or with commas between."""
    return [name.strip() for given in arguments.tasks for name in given.split(",") if name.strip()]


def chosen_preset(arguments: EvalArguments) -> Preset | None:
    """The preset, with the command line's say over it. Raises UnknownComponentError, DataError, OptionError."""
    if arguments.preset is None:
        return None
    from dllm_core.evaluation.plan import chosen, read_preset

    preset = read_preset(arguments.preset)
    return chosen(
        preset,
        task_names(arguments),
        options_of(arguments),
        arguments.num_fewshot,
        chat=arguments.chat,
        sampler=arguments.sampler,
        likelihood=arguments.likelihood,
    )


def chosen_plans(arguments: EvalArguments) -> Sequence[TaskPlan]:
    """A plan for each task that is named."""
    from dllm_core.evaluation.plan import plans_for

    return plans_for(
        task_names(arguments),
        num_fewshot=arguments.num_fewshot,
        chat=arguments.chat,
        sampler=arguments.sampler,
        likelihood=arguments.likelihood,
        options=options_of(arguments),
    )


def task_manager(arguments: EvalArguments, plans: Sequence[TaskPlan]) -> TaskManager:
    """lm-eval's index of tasks. Raises UnknownComponentError."""
    from dllm_core.evaluation.runner import quieten
    from dllm_core.evaluation.tasks import find_tasks

    quieten()
    return find_tasks([plan.task for plan in plans], arguments.include)


def load_model(arguments: EvalArguments, model: str, preset: Preset | None) -> DiffusionLM:
    """The model, behind lm-eval's interface, with the journal of the output folder.

    Raises:
        ModelLoadError: there is no such model.
        OptionError: the preset is for another family.
    """
    from dllm_core.cli.generate import quieten
    from dllm_core.cli.output import loading
    from dllm_core.evaluation.bridge import DiffusionLM
    from dllm_core.evaluation.journal import Journal
    from dllm_core.evaluation.plan import check_family
    from dllm_core.evaluation.processes import gathered, own_device, rank_and_size
    from dllm_core.models.loading import load, read_config, resolve_path

    quieten(bars=is_here(model) or not sys.stderr.isatty())
    if preset is not None:
        served = registry.adapter_for_model_type(str(read_config(resolve_path(model), None).get("model_type")))
        check_family(preset, served.name if served else "unknown")
    with loading(f"Loading {model}", at_once=is_here(model)):
        denoiser = load(model, device=own_device(arguments.device), dtype=arguments.dtype)
    folder = None if arguments.output is None else arguments.output / "requests"
    journal = Journal(folder, rank_and_size()[0])
    gathered([])  # nobody writes before all have read, or they would deal out different work
    return DiffusionLM(
        denoiser=denoiser,
        batch_size=batch_size(arguments, preset),
        seed=arguments.seed,
        add_bos=preset.add_bos if preset and arguments.add_bos is None else arguments.add_bos,
        journal=journal,
    )


def run_plans(
    arguments: EvalArguments, lm: DiffusionLM, model: str, plans: Sequence[TaskPlan], manager: TaskManager
) -> tuple[list[TaskResult], dict[str, Trace]]:
    """The results of all plans, and traces of some answers by the plan's name."""
    from dllm_core.cli.eval_page import record
    from dllm_core.cli.generate import family_sampler
    from dllm_core.evaluation.runner import RunSettings, run

    settings = RunSettings(
        limit=arguments.limit,
        system=arguments.system,
        data_dir=arguments.data_dir,
        with_samples=arguments.output is not None,
        allow_code=arguments.allow_code_execution,
    )
    sampler = arguments.sampler or family_sampler(model) or DEFAULT_SAMPLER
    results, traces = [], {}
    for result in run(lm, plans, manager, settings, sampler=sampler):
        results.append(result)
        trace = record(lm, result, arguments.trace_samples)
        if trace is not None:
            traces[result.plan.name] = trace
    return results, traces


def dry_run(
    arguments: EvalArguments, model: str, preset: Preset | None, plans: Sequence[TaskPlan], manager: TaskManager
) -> None:
    """Print the plan with its cost; no model is loaded."""
    from dllm_core.evaluation.forecast import forecast
    from dllm_core.evaluation.report import show_plan

    size = batch_size(arguments, preset)
    rows = [
        forecast(plan, manager, limit=arguments.limit, batch_size=size, data_dir=arguments.data_dir) for plan in plans
    ]
    if arguments.as_json:
        data = {"model": model, "preset": preset.name if preset else None, "tasks": [row.as_dict() for row in rows]}
        click.echo(json.dumps(data, indent=2))
        return
    show_plan(model, rows)


def batch_size(arguments: EvalArguments, preset: Preset | None) -> int:
    """What the command line says, else the preset, else the default."""
    return arguments.batch_size or (preset.batch_size if preset else None) or DEFAULT_BATCH


def as_data(
    arguments: EvalArguments, lm: DiffusionLM, model: str, preset: Preset | None, results: Sequence[TaskResult]
) -> dict[str, object]:
    """The results file: all but ``timing`` is the same each time the same is evaluated."""
    from dllm_core.evaluation.execution import holder
    from dllm_core.evaluation.journal import fingerprint
    from dllm_core.evaluation.provenance import commit, versions
    from dllm_core.evaluation.runner import SEEDS

    return {
        "format": 1,
        "model": {"name": model, "fingerprint": fingerprint(lm.denoiser), "dtype": str(lm.denoiser.dtype)},
        "preset": preset.name if preset else None,
        "tolerance": preset.tolerance if preset else None,
        "settings": {
            "limit": arguments.limit,
            "system": arguments.system,
            "batch_size": lm.batch_size,
            "add_bos": lm.add_bos,
            "seeds": {"noise": arguments.seed, **SEEDS},
            "code_execution": holder() if arguments.allow_code_execution else None,
        },
        "versions": versions(),
        "commit": commit(),
        "tasks": [result.as_dict() for result in results],
        "timing": {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": {result.plan.name: result.seconds for result in results},
            "requests_found": lm.journal.found,
            "requests_computed": lm.journal.computed,
        },
    }


def write_results(arguments: EvalArguments, report: dict[str, object], results: Sequence[TaskResult]) -> None:
    """The results file, and one file of samples a task where they are wanted."""
    write_whole(arguments.output / RESULTS, json.dumps(report, indent=2, default=str) + "\n")
    for result in results if arguments.log_samples else ():
        for task, rows in result.samples.items():
            name = "-".join(dict.fromkeys((result.plan.name.replace("/", "_"), task)))
            lines = [json.dumps(row, default=str) + "\n" for row in rows]
            write_whole(arguments.output / f"samples-{name}.jsonl", "".join(lines))


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears under its name only once it is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
