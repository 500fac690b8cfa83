"""The root of the command line: help, suggestions, exit codes, and what an error looks like."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_core import __version__
from dllm_core.cli import COMMANDS

# A command line with three more commands, each of which ends in its own way.
WITH_COMMANDS = """
import sys, time, click
from dllm_core import cli
from dllm_core.errors import ComponentLoadError, OptionError

@click.command()
@click.argument("how")
@click.pass_context
def command(ctx, how):
    if how == "option": raise OptionError("steps must be at least 1, got 0")
    if how == "load": raise ComponentLoadError("sampler 'a/b' cannot be loaded")
    if how == "bug": {}["absent"]
    if how == "code": ctx.exit(3)
    if how == "usage": raise click.UsageError("no such file")
    if how == "talk":
        for _ in range(100_000): click.echo("much text")
    if how == "whisper":
        sys.stdin.read()
        print("little text, still in the buffer when this command is done")
    if how == "wait":
        print("waiting", flush=True)
        time.sleep(30)

cli.COMMANDS["end"] = ("__main__:command", "End in a way of its own.")
sys.exit(cli.main())
"""

# A shell that runs the tests in the background has them, and all that they start, ignore interrupts.
HEARS_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


def end(how: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITH_COMMANDS, "end", how],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def dllm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dllm_core", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_command_with_its_purpose(option: str) -> None:
    done = dllm(option)
    assert (done.returncode, done.stderr) == (0, "")
    for name, (_, purpose) in COMMANDS.items():
        assert f"  {name:<{max(map(len, COMMANDS))}}  {purpose}\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_version() -> None:
    assert dllm("--version").stdout == f"dllm {__version__}\n"


def test_an_unknown_command_suggests_one() -> None:
    done = dllm("plugin")
    assert (done.returncode, done.stdout) == (2, "")
    expected = f"Error: No such command 'plugin'. Did you mean 'plugins'? Commands: {', '.join(COMMANDS)}"
    assert done.stderr.splitlines()[-1] == expected


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("well", 0, ""),
        ("code", 3, ""),
        ("option", 2, "Error: steps must be at least 1, got 0\n"),
        ("load", 1, "Error: sampler 'a/b' cannot be loaded\n"),
        ("bug", 1, "Error: KeyError: 'absent'   [DLLM_DEBUG=1 shows where]\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(how: str, code: int, said: str) -> None:
    done = end(how)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


def test_wrong_usage_is_2() -> None:
    done = end("usage")
    assert done.returncode == 2
    assert done.stderr.endswith("Error: no such file\n")


@pytest.mark.parametrize("how", ["option", "bug"])
def test_debugging_shows_the_traceback(how: str) -> None:
    done = end(how, DLLM_DEBUG="1")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")


def test_an_interrupt_is_130_without_a_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS_INTERRUPTS + WITH_COMMANDS, "end", "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.strip()) == (130, "")


@pytest.mark.parametrize("how", ["talk", "whisper"])
def test_a_reader_that_leaves_is_met_with_silence(how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_COMMANDS, "end", how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # "whisper" is about what waits in the buffer
    )
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=20) == 1


def test_the_console_script_is_the_same_program() -> None:
    script = Path(sys.executable).with_name("dllm")
    if not script.exists():
        pytest.skip("the project is on the path but not installed")
    started = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert started.stdout == f"dllm {__version__}\n"
