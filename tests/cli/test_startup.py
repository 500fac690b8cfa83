"""Asking what there is imports nothing heavy: counted in modules, which no slow machine can change."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "accelerate",
    "datasets",
    "jinja2",
    "numpy",
    "packaging",
    "rich",
    "tokenizers",
    "torch",
    "transformers",
    "yaml",
}
# Python and click are about 190 modules; torch alone brings more than 1000.
MOST_MODULES = 250
RUN = """
import json, sys
from dllm_core.cli import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["plugins"],
        ["plugins", "--json"],
        ["plugins", "list"],
        ["plugins", "show", "core"],
        ["plugins", "show", "llada"],
        ["plugins", "--help"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == 0
    assert done.stdout
    assert not HEAVY & set(modules)
    assert len(modules) < MOST_MODULES
    assert not {"dllm_core.cli.run", "dllm_core.cli.train", "dllm_llada.adapter"} & set(modules)
