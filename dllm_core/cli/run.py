"""`dllm run`: generate text from a prompt, a file of prompts, or a text with blanks.

Everything that can be checked without the model is checked before it is loaded, and what needs no torch before that.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from dllm_core import registry
from dllm_core.cli.completing import components, device_and_dtype, models, plugins
from dllm_core.cli.prompts import BLANK, Request, read_requests
from dllm_core.config import at_least, parse_assignments
from dllm_core.errors import ModelLoadError, OptionError, PromptError, UnknownComponentError, did_you_mean
from dllm_core.hookspecs import BundledCheckpoint

if TYPE_CHECKING:
    from dllm_core.cli.generate import Generation

DEFAULT_SAMPLER = "mdlm"
# Flags that are sampler options under the same name, and the smallest value of each.
SAMPLER_FLAGS = {"max_new_tokens": 1, "steps": 1, "block_size": 1, "temperature": 0, "seed": None}


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """What the command line says; None: it does not say. Fields are named as the options of `command` are."""

    prompt: str | None
    prompts_file: Path | None
    infill: bool
    model: str | None
    plugin: str | None
    sampler: str | None
    assignments: tuple[str, ...]
    max_new_tokens: int | None
    steps: int | None
    block_size: int | None
    temperature: float | None
    seed: int | None
    chat: bool | None
    system: str | None
    device: str
    dtype: str
    batch_size: int
    as_json: bool
    live: bool | None
    output: Path | None
    trace: Path | None

    @property
    def is_demo(self) -> bool:
        return self.prompt is None and self.prompts_file is None and not self.infill


EPILOG = """\b
Examples:
  dllm run                                         a bundled model at work
  dllm run "reverse planet" --steps 8
  dllm run --infill "12+[MASK:2]=57"               fill a blank of two tokens
  cat draft.txt | dllm run --infill - > filled.txt     all but the blanks stays, byte for byte
  dllm run --prompts-file prompts.jsonl --json > results.jsonl
  dllm run "12+30" --trace sum.trace               and then: dllm visualize sum.trace
  git diff | dllm run - --model FOLDER --system "Summarise this change."
"""


@click.command(
    "run", epilog=EPILOG, short_help="Generate text.", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.argument("prompt", required=False)
@click.option("--prompts-file", type=click.Path(path_type=Path), metavar="JSONL", help="One prompt a line, as JSON.")
@click.option("--infill", is_flag=True, help="PROMPT is a text with blanks: [MASK], or [MASK:5] for five tokens.")
@click.option(
    "-m",
    "--model",
    shell_complete=models,
    help="Hub id, folder, or bundled checkpoint. Default: the first bundled one.",
)
@click.option(
    "--plugin",
    shell_complete=plugins,
    metavar="NAME",
    help="Use the checkpoint and the sampler that this plugin brings.",
)
@click.option(
    "--sampler",
    shell_complete=components("sampler"),
    metavar="NAME",
    help=f"Default: {DEFAULT_SAMPLER}. 'dllm plugins' lists them.",
)
@click.option("-o", "assignments", multiple=True, metavar="KEY=VALUE", help="A sampler option; may be repeated.")
@click.option("--max-new-tokens", type=int, help="Length of the completion, in tokens.")
@click.option("--steps", type=int, help="Denoising steps in all. Default: one a token.")
@click.option("--block-size", type=int, help="Finish the text block by block, each of so many tokens.")
@click.option("--temperature", type=float, help="0 takes the most probable token.  [default: 0]")
@click.option("--seed", type=int, help="Of the noise, where there is any.  [default: 0]")
@click.option("--chat/--raw", default=None, help="Prompt through the chat template, or as it is. Default: chat if any.")
@click.option("--system", metavar="TEXT", help="System message of the chat.")
@device_and_dtype
@click.option("--batch-size", type=int, default=8, show_default=True, help="Prompts that are generated together.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a prompt: text, counts, options.")
@click.option("--live/--no-live", default=None, help="Watch the text appear. Default: on a terminal.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Instead of stdout.")
@click.option("--trace", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="For dllm visualize.")
def command(**given: Any) -> None:
    """Generate text from PROMPT ('-': from standard input) with a diffusion language model.

    Without PROMPT a bundled model shows what it can do.
    """
    run(RunArguments(**given))  # unknown names fail here: the dataclass lists them all


class SamplerChoice(NamedTuple):
    """A sampler, and whether it was asked for or the model's family may name another."""

    full_id: str
    is_final: bool


def run(arguments: RunArguments) -> None:
    """Check everything that can be, load the model, generate, write.

    Raises:
        DllmError: whatever is wrong with the arguments, the prompts or the model.
    """
    check_files(arguments)
    options = sampler_options(arguments)
    requests = read_requests(arguments.prompt, arguments.prompts_file, infill=arguments.infill)
    check_kinds(arguments, {request.kind for request in requests})
    live = wants_live(arguments)
    model, sampler = choose_model(arguments.model, arguments.plugin), choose_sampler(arguments)
    demo = demo_checkpoint(model) if arguments.is_demo else None
    if demo is not None:
        requests = demo_requests(demo)
    if "max_length" not in options:
        options = default_length(model) | options

    from dllm_core.cli.output import open_results, whole_file
    from dllm_core.display.trace import write_trace

    trace_file = nullcontext() if arguments.trace is None else whole_file(arguments.trace, "--trace")
    with open_results(arguments.output, as_json=arguments.as_json) as results, trace_file as trace:
        generation = load_generation(arguments, model, sampler, options)
        generation.prepare(requests, chat=arguments.chat, system=arguments.system)
        captions = demo is not None or (len(requests) > 1 and sys.stdout.isatty() and arguments.output is None)
        if demo is not None:
            results.introduce(f"{demo.name}: {demo.summary}")
        recorder = None if trace is None else generation.recorder()
        for batch in generation.run(arguments.batch_size, live=live, slowly=demo is not None, recorder=recorder):
            results.write(batch, about=generation.about, captions=captions)
        if recorder is not None:
            write_trace(recorder.trace(generation.about), trace)
        if demo is not None:
            results.suggest_next()


def load_generation(
    arguments: RunArguments, model: str, sampler: SamplerChoice, options: dict[str, object]
) -> Generation:
    """Import torch and load the model that a run asks for."""
    return load_model(model, sampler, options, device=arguments.device, dtype=arguments.dtype)


def load_model(
    model: str, sampler: SamplerChoice, options: dict[str, object], *, device: str, dtype: str
) -> Generation:
    """Import torch and load a model and its sampler, with a sign of life."""
    from dllm_core.cli.output import loading

    with loading(f"Loading {model}", at_once=is_here(model)):
        from dllm_core.cli.generate import Generation, family_sampler, quieten

        quieten(bars=is_here(model) or not sys.stderr.isatty())
        name = sampler.full_id if sampler.is_final else family_sampler(model) or sampler.full_id
        return Generation.load(model, name, options, device=device, dtype=dtype)


def is_here(model: str) -> bool:
    """Whether nothing is downloaded to load a model."""
    return Path(model).is_dir() or registry.find_bundled(model) is not None


def sampler_options(arguments: RunArguments) -> dict[str, object]:
    """The sampler options of the flags and of ``-o``, with the ranges of the flags checked.

    Raises:
        OptionError: out of range, or given both ways.
    """
    at_least("--batch-size", arguments.batch_size, 1)
    options = parse_assignments(arguments.assignments)
    for name, minimum in SAMPLER_FLAGS.items():
        value, flag = getattr(arguments, name), "--" + name.replace("_", "-")
        if value is None:
            continue
        if minimum is not None:
            at_least(flag, value, minimum)
        if name in options:
            raise OptionError(f"{flag} and -o {name}=... are the same option; give one of them")
        options[name] = value
    return options


def check_kinds(arguments: RunArguments, kinds: set[str]) -> None:
    """Raise where an option would have no effect on what is asked for.

    Raises:
        OptionError: which options do not go together.
    """
    if kinds == {"infill"} and arguments.max_new_tokens is not None:
        raise OptionError("infilling fills the blanks and nothing else; leave out --max-new-tokens, write [MASK:5]")
    if arguments.system is not None and arguments.chat is False:
        raise OptionError("--system is a chat message and --raw uses no chat template; leave out one of them")
    if "infill" in kinds and (arguments.system is not None or arguments.chat):
        raise OptionError("infilling takes the text as it is; leave out --chat and --system")
    if "messages" in kinds and (arguments.system is not None or arguments.chat is False):
        raise OptionError("a line with messages is a whole chat; leave out --raw, and give the system message there")


def check_files(arguments: RunArguments) -> None:
    """Raise OptionError where one file is to hold two things."""
    flags = {"--output": arguments.output, "--trace": arguments.trace, "--prompts-file": arguments.prompts_file}
    named = [(flag, path) for flag, path in flags.items() if path is not None]
    for (flag, path), (other, other_path) in combinations(named, 2):
        if path.resolve() == other_path.resolve():
            raise OptionError(f"{flag} and {other} are both {path}; give two files")


def wants_live(arguments: RunArguments) -> bool:
    """Whether to draw the live view of a run: by default where a person watches and the text is for people.

    Raises:
        OptionError: it is asked for where there is no terminal.
    """
    is_for_people = not arguments.as_json and (sys.stdout.isatty() or arguments.output is not None)
    return wants_view(arguments.live, by_default=is_for_people)


def wants_view(asked: bool | None, *, by_default: bool) -> bool:
    """Whether to draw on stderr: what was asked for, else ``by_default`` where stderr can be drawn on.

    Raises:
        OptionError: it is asked for where there is no terminal.
    """
    can_draw = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    if asked and not can_draw:
        raise OptionError("--live draws on the terminal, but standard error is none that can be drawn on; leave it out")
    return can_draw and by_default if asked is None else asked


def choose_model(model: str | None, plugin: str | None = None) -> str:
    """The model that was named, else the first bundled checkpoint, of the named plugin where one is.

    Raises:
        ModelLoadError: none is named and none is bundled.
        UnknownComponentError: no such plugin.
    """
    check_plugin(plugin)
    if model is not None:
        return model
    # A plugin that brings only a sampler shows it on whatever checkpoint there is.
    any_owner = plugin is None or _brings_sampler(plugin)
    for owner, checkpoint in sorted(registry.bundled_checkpoints(), key=lambda entry: entry[0] != plugin):
        if any_owner or owner == plugin:
            return f"{owner}/{checkpoint.name}" if _is_ambiguous(checkpoint) else checkpoint.name
    who = "no installed plugin ships" if plugin is None else f"plugin {plugin!r} does not ship"
    hint = registry.missing_plugins_hint()
    raise ModelLoadError(f"{who} a checkpoint; name a model with --model (a folder or a hub id).{hint}")


def _brings_sampler(plugin: str | None) -> bool:
    return any(component.plugin == plugin for component in registry.components("sampler"))


def default_length(model: str) -> dict[str, object]:
    """The completion length that a bundled checkpoint asks for, as a sampler option; none for other models."""
    found = bundled_checkpoint(model)
    return {} if found is None or found.max_new_tokens is None else {"max_new_tokens": found.max_new_tokens}


def bundled_checkpoint(model: str) -> BundledCheckpoint | None:
    """The bundled checkpoint that a model's name means, None for folders and hub ids."""
    for plugin, checkpoint in registry.bundled_checkpoints():
        if model in (checkpoint.name, f"{plugin}/{checkpoint.name}") and not Path(model).is_dir():
            return checkpoint
    return None


def _is_ambiguous(checkpoint: BundledCheckpoint) -> bool:
    return [other.name for _, other in registry.bundled_checkpoints()].count(checkpoint.name) > 1


def check_plugin(name: str | None) -> None:
    """Raise UnknownComponentError unless a plugin of that name is installed and works."""
    from dllm_core.plugins import plugin_host

    records = {record.name: record for record in plugin_host().records}
    if name is not None and name not in records:
        raise UnknownComponentError(
            f"no plugin {name!r} is installed.{did_you_mean(name, records)} Installed: {', '.join(records)}"
        )
    if name is not None and records[name].state != "ok":
        reason = records[name].error or "DLLM_PLUGINS leaves it out"
        raise UnknownComponentError(f"plugin {name!r} is {records[name].state}: {reason}; see dllm plugins show {name}")


def choose_sampler(arguments: RunArguments) -> SamplerChoice:
    """The sampler that was named, else the named plugin's first, else the default one.

    Raises:
        UnknownComponentError: no such sampler.
    """
    if arguments.sampler is not None:
        return SamplerChoice(registry.find("sampler", arguments.sampler).full_id, is_final=True)
    own = [c for c in registry.components("sampler") if c.plugin == arguments.plugin and not c.spec.families]
    if own:
        return SamplerChoice(own[0].full_id, is_final=True)
    return SamplerChoice(registry.find("sampler", DEFAULT_SAMPLER).full_id, is_final=False)


def demo_requests(checkpoint: BundledCheckpoint) -> list[Request]:
    """The demo prompts of a bundled checkpoint; those with a blank are texts to fill."""
    return [
        Request("infill" if BLANK.search(prompt) else "prompt", prompt, f"demo prompt {prompt!r}")
        for prompt in checkpoint.demo_prompts
    ]


def demo_checkpoint(model: str) -> BundledCheckpoint:
    """The bundled checkpoint of that name, which has prompts that show what it can do.

    Raises:
        PromptError: that model brings none.
    """
    found = bundled_checkpoint(model)
    if found is not None and found.demo_prompts:
        return found
    raise PromptError(f"{model!r} brings no demo prompts; give a prompt: dllm run --model {model} 'your text'")
