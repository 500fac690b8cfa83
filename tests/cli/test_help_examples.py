"""Every command's help ends with examples, and they work: taken from the help as it is printed, run in a folder."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from dllm_core.cli import main, root
from dllm_core.plugins import installed_host

# What an example leaves to its reader in capitals, and is no folder.
CHOICES = {"RECIPE": "llada-tiny-sft", "PRESET": "llada-tiny", "TASK": "llada_tiny_reversal", "PLUGIN": "acme"}
# The small form: given behind the example's own options, of which the last counts.
SMALL = {
    "bench": ["--count", "1", "--repeats", "1"],
    "data prepare": ["--processes", "1"],
    "eval": ["--limit", "1"],
    "train": [
        *("max_steps=1", "warmup_steps=0", "per_device_train_batch_size=2", "save_steps=1"),
        *("data.eval_count=2", "eval_strategy=no"),
    ],
}
# Standard input, by the command in front of the pipe.
TYPED = {"git diff": "reverse planet", "cat draft.txt": "12+[MASK:2]=57\n", "": "reverse planet\n"}
SLOW = {"eval", "plugins check"}
WRITTEN = {".trace", ".html", ".svg", ".png", ".gif"}
CALL = re.compile(r"dllm |accelerate launch -m dllm_core ")


class Example(NamedTuple):
    """One line of a help: what is typed in front of a pipe, the arguments of dllm, where its output goes."""

    typed: str
    arguments: list[str]
    target: str


def commands(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    """(name without ``dllm``, help) of a command and of all below it."""
    context = command.make_context(name, [], parent, resilient_parsing=True, terminal_width=200)
    yield context.command_path.removeprefix("dllm").strip(), command.get_help(context)
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from commands(command.get_command(context, child), context, child)


HELP = dict(commands(root, None, "dllm"))


def examples(text: str) -> list[Example]:
    """The examples of a help: its last paragraph, without the comments, which stand behind three blanks."""
    last = text.rstrip().split("\n\n")[-1].splitlines()
    assert last[0].strip() == "Examples:", "help ends with its examples"
    return [example(re.split(r"\s{3,}", line.strip())[0]) for line in last[1:]]


def example(line: str) -> Example:
    before, _, call = line.rpartition(" | ")
    call, _, target = call.partition(">")
    found = CALL.match(call)
    assert found, f"no call of dllm: {line}"
    words = shlex.split(call[found.end() - 1 :])
    return Example(before, [CHOICES.get(word, word) for word in words], target.strip("> "))


def in_small(name: str, arguments: list[str]) -> list[str]:
    short = [*arguments, *SMALL.get(name, [])] if " ".join(arguments).startswith(name) else arguments
    return [*short, "--dry-run"] if name == "train" and "--launch" in arguments else short


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the examples: the files and folders that they speak of."""
    from dllm_core import registry
    from dllm_core.training.recipes import recipe_file

    monkeypatch.chdir(tmp_path)
    chat = [{"role": "user", "content": "twice abc"}, {"role": "assistant", "content": "abcabc"}]
    for name in ("chats.jsonl", "tatsu-lab/alpaca/train.jsonl"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"{json.dumps({'messages': chat})}\n" * 4)
    Path("questions.csv").write_text("question,answer\nreverse ab,ba\ntwice ab,abab\n")
    Path("prompts.jsonl").write_text('{"prompt": "reverse planet"}\n{"prompt": "12+30="}\n')
    Path("notes.py").write_text("def ad(price, count):\n    return price + cont\n\n" * 4)
    Path("out").mkdir()  # of a training that was begun
    log = [{"step": step, "loss": 2.0 / step, "learning_rate": 1e-3, "grad_norm": 1.0} for step in range(1, 9)]
    Path("out/trainer_state.json").write_text(json.dumps({"log_history": log}))
    Path("own.yaml").write_text(recipe_file("llada-tiny-sft").read_text())
    Path("FOLDER").symlink_to(registry.find_bundled("llada-tiny"))
    return tmp_path


@pytest.fixture
def adapter(folder: Path) -> None:
    """``my-adapter``, of the model in ``OWNER/MODEL``."""
    import dllm_core as dllm
    from dllm_core.models.lora import LoraSection, add_lora

    (folder / "OWNER").mkdir()
    (folder / "OWNER/MODEL").symlink_to((folder / "FOLDER").resolve())
    wrapped = add_lora(dllm.load("FOLDER", device="cpu"), LoraSection(r=2))
    wrapped.model.save_pretrained("my-adapter")
    wrapped.lora.write(folder / "my-adapter")


@pytest.fixture
def causal(folder: Path) -> None:
    """Two causal models that are not trained."""
    import transformers
    from dllm_a2d.tiny import architecture, build_tokenizer, causal_config

    for name in ("OWNER/MODEL", "my-causal-model"):
        getattr(transformers, architecture("gpt2").model)(causal_config("gpt2")).save_pretrained(name)
        build_tokenizer("gpt2").save_pretrained(name)


@pytest.fixture
def plugin(distributions: Callable[..., EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed plugin ``acme``, which is quickly checked: it has one commit rule."""
    spec = (
        'CommitRuleSpec(name="steady", summary="As core", source="original", target="dllm_core.samplers.commit:Quota")'
    )
    distributions("acme", f"@hookimpl\ndef dllm_samplers():\n    yield {spec}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    installed_host.cache_clear()
    yield
    installed_host.cache_clear()


NEEDS = {"merge": "adapter", "convert": "causal", "plugins check": "plugin"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in HELP])
def test_examples_work(
    name: str, folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    found = examples(HELP[name])
    assert sum(" ".join(one.arguments).startswith(name) for one in found) >= 2
    if name in NEEDS:
        request.getfixturevalue(NEEDS[name])
    for one in found:
        typed = one.typed.removeprefix("echo ").strip('"') if one.typed.startswith("echo") else TYPED[one.typed]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
        code = main(in_small(name, one.arguments))
        out, err = capsys.readouterr()
        assert code == 0, f"{one.arguments}: {err or out}"
        assert (out + err).strip(), one.arguments
        written = [word for word in one.arguments if Path(word).suffix in WRITTEN]
        assert [word for word in written if not Path(word).stat().st_size] == []
        if one.target:
            Path(Path(one.target).name).write_text(out)


def test_an_example_is_read_as_a_shell_reads_it() -> None:
    line = 'git diff | dllm run - --model FOLDER --system "Say so." > out.txt    a comment'
    assert examples(f"Usage\n\n  Examples:\n    {line}\n") == [
        Example("git diff", ["run", "-", "--model", "FOLDER", "--system", "Say so."], "out.txt")
    ]
    with pytest.raises(AssertionError, match="ends with its examples"):
        examples("Usage\n\nOptions:\n  --help\n")
