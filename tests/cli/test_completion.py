"""Shell completion, as the shells ask for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

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


def test_an_unknown_shell_is_refused_in_words(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err
