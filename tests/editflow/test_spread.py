"""Two processes give the gradients of one, also where the second has no edit to score and the first several pieces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("engine", ["zero3", "fsdp"])
def test_unequal_rows_on_two_processes(engine, tmp_path):
    if engine == "zero3":
        pytest.importorskip("deepspeed")
    file, script = tmp_path / "gradients.json", Path(__file__).parent / "spread.py"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(file), engine],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(file.read_text())
    assert set(found) == {"LLaDA", "Dream with LoRA"}
    for model, errors in found.items():
        assert any("ins_logits" in name for name in errors), model
        assert max(errors.values()) < 1e-4, (model, errors)
