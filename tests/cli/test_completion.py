"""Shell completion, as the shells ask for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_core.cli import main

ASK = "from dllm_core.cli import main; main([])"


def completions(shell: str, words: str, current: str) -> str:
    asked = {"_DLLM_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": current}
    done = subprocess.run([sys.executable, "-c", ASK], env=os.environ | asked, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_names_the_program(shell, capsys):
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("no bash here")
    assert main(["completion", shell]) == 0
    assert f"_DLLM_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_commands_and_options_are_completed():
    assert "visualize" in completions("bash", "dllm vis", "1")
    assert "--trace" in completions("bash", "dllm run --tr", "2")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("dllm recipes show llada-tiny-s", "llada-tiny-sft"),
        ("dllm recipes show llada/llada-tiny-s", "llada/llada-tiny-sft"),
        ("dllm train --launch zero", "zero2"),
        ("dllm run --plugin fast", "fastdllm"),
        ("dllm eval --device c", "cuda"),
    ],
)
def test_values_are_completed(words, wanted):
    assert wanted in completions("bash", words, str(len(words.split()) - 1))


def test_an_unknown_shell_is_refused_in_words(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


def installed(folder: Path) -> dict[str, str]:
    """The environment of a shell that finds ``dllm`` as a program."""
    program = folder / "dllm"
    program.write_text(f"#!{sys.executable}\nimport sys\n\nfrom dllm_core.cli import main\n\nsys.exit(main())\n")
    program.chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}


WORDS = {
    "dllm vis": "visualize",
    "dllm run --tra": "--trace",
    "dllm run --model lla": "llada-tiny",
    "dllm train --recipe llada-tiny-s": "llada-tiny-sft",
    "dllm chat --dtype bf": "bfloat16",
    "dllm plugins show lla": "llada",
    "dllm plugins new acme --kind sa": "sampler",
}
# How each shell is asked what Tab would give, once it has read the script.
BASH = """\
source script
words=({words}); COMP_WORDS=("${{words[@]}}"); COMP_CWORD=$((${{#words[@]}} - 1))
_dllm_completion dllm "${{words[-1]}}"; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """\
autoload -Uz compinit && compinit -u -d dump
source script
compadd() {{ local -a given; given=("$@"); print -l -- $given; [[ -n $5 ]] && print -l -- ${{(P)5}} }}
_describe() {{ print -l -- ${{(P)3}} }}
words=({words}); CURRENT=${{#words}}
_dllm_completion
"""
FISH = 'source script; complete --do-complete "{words}"\n'


@pytest.mark.parametrize(("shell", "question"), [("bash", BASH), ("zsh", ZSH), ("fish", FISH)], ids=lambda x: x[:4])
def test_a_shell_completes_a_command_an_option_and_a_checkpoint(shell: str, question: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    environment = installed(tmp_path)
    script = subprocess.run(
        ["dllm", "completion", shell], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    (tmp_path / "script").write_text(script.stdout)
    for words, wanted in WORDS.items():
        asked = [shell, "-c", question.format(words=words)]
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert wanted in done.stdout, f"{words}: {done.stdout} {done.stderr}"
