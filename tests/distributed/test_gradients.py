"""On every engine two processes give the gradients of one: the lean loss runs where the engines' hooks see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MODELS = {"plain", "tied", "own head", "lora", "checkpointed"}


@pytest.mark.parametrize("engines", [("ddp", "fsdp", "fsdp, head alone"), ("zero3",)], ids="-".join)
def test_two_processes_give_the_gradients_of_one(engines, tmp_path):
    """To float precision: plain, tied, chunked and adapted heads, and where one process has nothing to learn."""
    if "zero3" in engines:
        pytest.importorskip("deepspeed")
    file = tmp_path / "gradients.json"
    script = Path(__file__).parent / "gradients.py"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(file), *engines],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(file.read_text())
    assert results["processes"] == 2
    assert results["engines"].keys() == set(engines)
    for engine, models in results["engines"].items():
        assert models.keys() == MODELS - ({"tied"} if engine == "fsdp, head alone" else set())
        for model, batches in models.items():
            assert batches.keys() == {"4", "2"}
            for batch, result in batches.items():
                where = f"{engine}, {model}, rows with hidden tokens: {batch}"
                assert result["same names"], where
                got, want = result["losses"]
                assert got == pytest.approx(want, rel=1e-6), where
                assert want > 1, where
                assert max(result["errors"].values()) < 5e-6, where
