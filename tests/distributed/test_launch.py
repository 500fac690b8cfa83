"""`dllm train --launch` and `--slurm`: the command, the script, and what comes of them when they run."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import dllm_core as dllm
from dllm_core.cli import root
from dllm_core.errors import DllmError, OptionError
from dllm_core.training.launch import (
    ENGINES,
    Launch,
    check_world,
    engine_arguments,
    torchrun_command,
    with_engine,
)
from dllm_core.training.recipes import load_recipe
from dllm_core.training.slurm import slurm_script, submit

HERE = Path(__file__).parent
RECIPE = """
model:
  adapter: llada
  config: {vocab_size: 106, d_model: 32, n_layers: 2, n_heads: 2, mlp_hidden_size: 32, max_sequence_length: 256,
           eos_token_id: 0, pad_token_id: 0, mask_token_id: 5}
tokenizer: {builder: "dllm_llada.tiny.tokenizer:build_tokenizer"}
data: {generator: "dllm_llada.tiny.generate:training_examples", options: {batch_size: 4}}
training: {max_steps: 4, per_device_train_batch_size: 4, use_cpu: true, logging_steps: 1, save_steps: 2,
           learning_rate: 0.001}
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(RECIPE)
    return file


def arguments(recipe: Path, output: Path, *more: str) -> list[str]:
    return ["train", "--recipe", str(recipe), "--output", str(output), *more]


# ------------------------------------------------------------------------------------------------------ the command


def test_dry_run_prints_recipe_and_command(recipe, tmp_path):
    result = CliRunner().invoke(
        root,
        arguments(recipe, tmp_path / "out", "--launch", "zero2", "--processes", "3", "--dry-run", "max_steps=7"),
        catch_exceptions=False,
    )
    assert yaml.safe_load(result.stdout)["training"]["deepspeed"]["zero_optimization"]["stage"] == 2
    line = shlex.split(result.stdout.splitlines()[-1].removeprefix("# "))
    assert line[1:3] == ["-m", "torch.distributed.run"]
    assert line[line.index("--nproc-per-node") + 1] == "3"
    assert "--standalone" in line
    worker = line[line.index("dllm_core") + 1 :]
    assert worker[:3] == ["train", "--recipe", str(recipe)]
    assert worker[-1] == "max_steps=7"
    assert not (tmp_path / "out").exists()


def test_several_machines_meet_somewhere():
    launch = Launch(engine="ddp", processes=2, nodes=3, rendezvous="first:29500")
    line = torchrun_command(launch, [])
    assert line[line.index("--nnodes") + 1] == "3"
    assert line[line.index("--rdzv-endpoint") + 1] == "first:29500"
    assert launch.world_size == 6
    with pytest.raises(OptionError, match="--nodes needs --rendezvous HOST:PORT"):
        torchrun_command(Launch(engine="ddp", processes=2, nodes=3), [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "zero4"}, r"--launch must be one of single, ddp.*Did you mean 'zero"),
        ({"processes": 2}, "--launch single is one process"),
        ({"engine": "ddp", "nodes": 0}, "--nodes must be at least 1"),
        ({"engine": "ddp", "processes": 0}, "--processes must be at least 1"),
        ({"engine": "ddp", "rendezvous": "first"}, "--rendezvous must be HOST:PORT"),
    ],
)
def test_options(options, message):
    with pytest.raises(OptionError, match=message):
        Launch(**options)


def test_the_number_of_processes_is_counted_or_asked_for(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(OptionError, match="--processes: no accelerator here to count"):
        Launch(engine="ddp").counted()
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)
    assert Launch(engine="ddp", nodes=2).counted().world_size == 8


def test_the_world_must_be_what_was_asked_for(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_world(Launch(engine="ddp", processes=2))
    with pytest.raises(OptionError, match="asks for 4 processes, 2 run"):
        check_world(Launch(engine="ddp", processes=4))


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_are_training_arguments(engine, recipe):
    """The shipped settings are read; an engine takes the place of another in the recipe."""
    before = with_engine(load_recipe(recipe), "zero3")
    training = with_engine(before, engine).training
    assert {name: training[name] for name in engine_arguments(engine)} == engine_arguments(engine)
    assert ("deepspeed" in training) == engine.startswith("zero")
    assert ("fsdp" in training) == (engine == "fsdp")
    if engine.startswith("zero"):
        assert training["deepspeed"]["zero_optimization"]["stage"] == int(engine[-1])


def test_engines_that_cannot_be(recipe, monkeypatch):
    text = "model: {checkpoint: llada-tiny, load_in_4bit: true}\nlora: {r: 2}\ndata: {train_file: x}\n"
    recipe.write_text(text)
    with pytest.raises(OptionError, match="cannot spread 4-bit weights; use ddp"):
        with_engine(load_recipe(recipe), "fsdp")
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"pip install 'dllm-core\[deepspeed\]'"):
        with_engine(load_recipe(recipe), "zero2")


# -------------------------------------------------------------------------------------------------- the batch script


def test_the_batch_script(tmp_path):
    launch = Launch(engine="zero3", processes=8, nodes=2)
    script = slurm_script(
        launch,
        ["--recipe", "a recipe.yaml"],
        output=tmp_path / "out",
        options=["time=24:00:00", "gpus_per_node=", "exclusive"],
    )
    header = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=8", "#SBATCH --requeue", "#SBATCH --time=24:00:00"} <= {
        *header
    }
    assert "#SBATCH --exclusive" in header
    assert not any("gpus" in line for line in header)  # taken away
    assert any(re.fullmatch(r"#SBATCH --signal=B:USR1@\d+", line) for line in header)
    assert "--recipe 'a recipe.yaml' --resume" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    with pytest.raises(OptionError, match="--slurm-option must be KEY=VALUE"):
        slurm_script(launch, [], output=tmp_path, options=["a b=1"])


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Slurm's commands on the path; returns the file where they write what they were asked."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("srun", "scontrol", "sbatch"):
        (commands / name).write_text(f"#!{sys.executable}\n{(HERE / 'fake_slurm.py').read_text()}")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM_LOG", str(tmp_path / "asked"))
    return tmp_path / "asked"


def test_a_script_is_written_or_submitted(recipe, tmp_path, slurm):
    out, script = tmp_path / "out", tmp_path / "job.sbatch"
    options = ["--launch", "ddp", "--processes", "2"]
    only_written = CliRunner().invoke(root, arguments(recipe, out, *options, "--slurm-script", str(script)))
    assert only_written.stdout == f"Wrote {script}; submit it with: sbatch {script}\n"
    assert not slurm.exists()
    submitted = CliRunner().invoke(root, arguments(recipe, out, *options, "--slurm"))
    assert submitted.stdout == "Submitted batch job 4711\n"
    assert slurm.read_text() == f"sbatch {out / 'train.sbatch'}\n"
    assert (out / "train.sbatch").read_text() == script.read_text()
    dry = CliRunner().invoke(root, arguments(recipe, out, *options, "--slurm", "--dry-run"))
    assert "# srun --kill-on-bad-exit=1" in dry.stdout
    assert slurm.read_text().count("\n") == 1


def test_a_job_may_need_what_this_machine_lacks(recipe, tmp_path, monkeypatch):
    """A GPU, as on the login node of a cluster; what is wrong on any machine is still found."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe.write_text(RECIPE.replace("use_cpu: true", "bf16: true"))
    script = ["--launch", "ddp", "--processes", "2", "--slurm-script", str(tmp_path / "job.sbatch")]
    assert CliRunner().invoke(root, arguments(recipe, tmp_path / "out", *script)).exit_code == 0
    with pytest.raises(OptionError, match="unknown option 'bf61'"):
        CliRunner().invoke(
            root, arguments(recipe, tmp_path / "out", *script, "training.bf61=true"), catch_exceptions=False
        )


def test_no_sbatch_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DllmError, match="no sbatch on this machine; copy"):
        submit(tmp_path / "job.sbatch")


SHOW = """
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
with open(os.environ["SEEN"] + os.environ["RANK"], "w") as file:
    json.dump([{name: os.environ[name] for name in names}, sys.argv[1:]], file)
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.mark.parametrize("code", [0, 1])
def test_each_task_has_its_own_rank(tmp_path, slurm, monkeypatch, code):
    """The script in bash, with a task that says what it was given. A failure is not started again."""
    monkeypatch.setattr(sys, "executable", f"{tmp_path}/show")
    (tmp_path / "show").write_text(f"#!{os.path.realpath('/proc/self/exe')}\n{SHOW}")
    (tmp_path / "show").chmod(0o755)
    script = slurm_script(Launch(engine="ddp", processes=2), ["x=1 2"], output=tmp_path)
    environment = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SEEN": f"{tmp_path}/seen"}
    done = subprocess.run(["bash", "-c", script], env=os.environ | environment | {"CODE": str(code)}, check=False)
    assert done.returncode == code
    for rank in "01":
        given, line = json.loads((tmp_path / f"seen{rank}").read_text())
        assert (given["RANK"], given["LOCAL_RANK"], given["WORLD_SIZE"]) == (rank, rank, "2")
        assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("localhost", "20007")
        assert line == ["-m", "dllm_core", "train", "x=1 2", "--resume"]
    assert not slurm.exists()


# --------------------------------------------------------------------------------------------------------- for real


def start(line: list[str], log: Path, **environment: str) -> subprocess.Popen:
    settings = {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(line, stdout=log.open("w"), stderr=subprocess.STDOUT, env=os.environ | settings)


def wait_for(text: str, log: Path, process: subprocess.Popen, seconds: float = 400) -> None:
    until = time.monotonic() + seconds
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.2)


def dllm_train(recipe: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "dllm_core", *arguments(recipe, output, *more)]


@pytest.mark.slow
def test_zero3_from_the_command_line_and_resumed(recipe, tmp_path):
    pytest.importorskip("deepspeed")
    pytest.importorskip("dllm_llada")
    out, log = tmp_path / "out", tmp_path / "log"
    options = ["--launch", "zero3", "--processes", "2"]
    assert start(dllm_train(recipe, out, *options), log).wait() == 0, log.read_text()[-3000:]
    assert log.read_text().count("Trained model in") == 1  # one process speaks
    loaded = dllm.load(out, device="cpu")
    assert loaded.model.get_input_embeddings().weight.shape == (106, 32)
    again = start(dllm_train(recipe, out, *options, "--resume", "max_steps=6"), log)
    assert again.wait() == 0, log.read_text()[-3000:]
    assert "resuming from" in log.read_text()
    assert json.loads((out / "checkpoints/checkpoint-6/trainer_state.json").read_text())["global_step"] == 6


@pytest.mark.slow
def test_zero3_tunes_a_checkpoint(tmp_path):
    """Weights that are loaded are spread at once: the vocabulary and the adapter's record are read in spite of it."""
    pytest.importorskip("deepspeed")
    pytest.importorskip("dllm_llada")
    out, log = tmp_path / "out", tmp_path / "log"
    recipe = Path("llada-tiny-lora")
    options = ["--launch", "zero3", "--processes", "2", "max_steps=2", "eval_strategy=no", "logging_steps=1"]
    assert start(dllm_train(recipe, out, *options), log).wait() == 0, log.read_text()[-3000:]
    record = json.loads((out / "dllm_lora.json").read_text())
    assert len(record["weights"]) > 30
    dllm.load("llada-tiny", lora=out, device="cpu")


@pytest.mark.slow
def test_fsdp_on_a_cpu_is_refused(recipe, tmp_path):
    """Accelerate would train with DDP and say nothing."""
    pytest.importorskip("dllm_llada")
    log = tmp_path / "log"
    process = start(dllm_train(recipe, tmp_path / "out", "--launch", "fsdp", "--processes", "2"), log)
    assert process.wait() == 2
    assert "asked to run as FSDP with 2 processes, and would run as MULTI_CPU" in log.read_text()
    assert not (tmp_path / "out/recipe.yaml").exists()


@pytest.mark.slow
def test_torchrun_hands_a_signal_on_and_waits(recipe, tmp_path):
    pytest.importorskip("dllm_llada")
    out, log = tmp_path / "out", tmp_path / "log"
    options = ["--launch", "ddp", "--processes", "2", "max_steps=100000", "save_steps=100000"]
    process = start(dllm_train(recipe, out, *options), log)
    wait_for("step 3/", log, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, log.read_text()[-3000:]
    assert len(list((out / "checkpoints").glob("checkpoint-*/files.json"))) == 1


@pytest.mark.slow
def test_slurm_stops_in_time_and_goes_on(recipe, tmp_path, slurm):
    """The script as it is, in bash: USR1 before the time limit, a checkpoint, requeue, and on to the end."""
    pytest.importorskip("dllm_llada")
    out, log, script = tmp_path / "out", tmp_path / "log", tmp_path / "job.sbatch"
    options = ["--launch", "ddp", "--processes", "2", "--slurm-script", str(script)]
    steps = ["max_steps=100000", "save_steps=100000"]
    CliRunner().invoke(root, arguments(recipe, out, *options, *steps), catch_exceptions=False)
    environment = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n1"}
    process = start(["bash", str(script)], log, **environment)
    wait_for("step 3/", log, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == 128 + signal.SIGTERM, log.read_text()[-3000:]
    assert slurm.read_text() == f"scontrol requeue {os.getpid()}\n"
    (checkpoint,) = (out / "checkpoints").glob("checkpoint-*")
    end = int(checkpoint.name.rpartition("-")[2]) + 2
    script.write_text(script.read_text().replace("max_steps=100000", f"max_steps={end}"))
    again = start(["bash", str(script)], log, **environment)
    assert again.wait() == 0, log.read_text()[-3000:]
    assert f"resuming from {checkpoint}" in log.read_text()
    assert slurm.read_text().count("\n") == 1  # finished: not started again
    dllm.load(out, device="cpu")


ENDING = """
import atexit
from dllm_core.training.launch import WorkerEnd
end = WorkerEnd()
atexit.register(print, "handlers that were registered later ran")
class Speaks:
    def __del__(self): print("the interpreter ended")
kept = Speaks()
end.with_code(int({code}))
"""


@pytest.mark.parametrize(("worker", "code", "last"), [(True, 143, "ran"), (False, 0, "the interpreter ended")])
def test_a_worker_ends_behind_its_exit_handlers(worker, code, last):
    """And in front of the interpreter's end, in which a thread of gloo can abort it; other processes end as always."""
    settings = {"RANK": "1", "WORLD_SIZE": "2"} if worker else {}
    done = subprocess.run(
        [sys.executable, "-c", ENDING.format(code=code)], capture_output=True, text=True, env=os.environ | settings
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.rstrip().endswith(last)
    assert "handlers that were registered later ran" in done.stdout


def test_stdout_is_the_result_alone(recipe, tmp_path):
    """Whatever libraries print while they train goes to stderr, and nothing of it is of a GPU that is not there."""
    pytest.importorskip("dllm_llada")
    line = [*dllm_train(recipe, tmp_path / "out", "max_steps=1", "eval_strategy=no", "save_strategy=no"), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {"output": str(tmp_path / "out")}
    assert "loss" in done.stderr
    assert "accelerator to CPU" not in done.stderr
