"""Two processes train as one does, on every engine that runs on a CPU. Each test asserts that there were two."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dllm_core as dllm
from dllm_core.models.lora import read_record

HERE = Path(__file__).parent
OBJECTIVES = ("mdlm", "mdlm-accumulated", "lora")
IDS = {"mask": 31, "eos": 1, "pad": 0}

pytestmark = pytest.mark.slow


def run(arguments: list[str], processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


def train(folder: Path, engine: str, processes: int) -> dict[str, dict]:
    done = run([str(HERE / "steps.py"), str(folder), engine, *objectives(engine)], processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f"{engine}.json").read_text())


def objectives(engine: str) -> list[str]:
    blocks = ["bd3lm"] if engine in ("single", "ddp", "zero3") else []
    in_4_bits = importlib.util.find_spec("bitsandbytes") is not None and engine in ("single", "ddp", "zero2")
    return [*OBJECTIVES, *blocks, *(["qlora"] if in_4_bits else [])]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(runs) -> dict[str, dict]:
    results = train(runs, "single", 1)
    assert all(result["type"] == "NO" and result["processes"] == 1 for result in results.values())
    return results


@pytest.mark.parametrize(
    ("engine", "kind", "stage"),
    [("ddp", "MULTI_CPU", None), ("zero1", "DEEPSPEED", 1), ("zero2", "DEEPSPEED", 2), ("zero3", "DEEPSPEED", 3)],
)
def test_two_processes_give_the_losses_of_one(runs, alone, engine, kind, stage):
    """Over ten steps, to 1e-6; with and without accumulation, full, LoRA and QLoRA; and the weights that they save."""
    if stage is not None:
        pytest.importorskip("deepspeed")
    for name, result in train(runs, engine, 2).items():
        assert (result["type"], result["processes"], result["stage"]) == (kind, 2, stage)
        assert len(result["losses"]) == 10
        assert result["losses"] == pytest.approx(alone[name]["losses"], rel=1e-6), name
        assert result["losses"][-1] < result["losses"][0]
        file = "adapter_model.safetensors" if "lora" in name else "model.safetensors"
        got, want = (load_file(runs / f"{place}-{name}" / file) for place in (engine, "single"))
        assert got.keys() == want.keys()
        for weight in got:
            torch.testing.assert_close(got[weight], want[weight], atol=5e-5, rtol=1e-4)
    assert read_record(runs / f"{engine}-lora").base == "nowhere"


def test_what_zero3_saves_loads(runs, alone, llama_family):
    """The weights were spread over two processes; the folder holds them whole."""
    pytest.importorskip("deepspeed")
    if not (runs / "zero3-mdlm").exists():
        train(runs, "zero3", 2)
    ids = torch.tensor([[3, 31, 5, 31]])
    spread, whole = (
        dllm.load(runs / f"{engine}-mdlm", special_ids=IDS, device="cpu") for engine in ("zero3", "single")
    )
    with torch.no_grad():
        torch.testing.assert_close(spread.logits(ids), whole.logits(ids), atol=1e-3, rtol=1e-3)


def test_fsdp2_shards_every_family_by_its_blocks(tmp_path):
    """Names of blocks exist, each block is a unit of its own, half of the weights lie on each process, equal losses."""
    done = run([str(HERE / "shard.py"), str(tmp_path / "shards.json")], 2)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "shards.json").read_text())
    assert len(results) > 2  # this test's own, and those of the plugins
    for name, result in results.items():
        assert result["blocks"] >= 2, name
        assert result["sharded"], name
        assert result["local"] < 0.6 * result["whole"], name
        assert result["sharded_losses"] == pytest.approx(result["whole_losses"], rel=1e-5), name
