"""The batch script that trains under Slurm, stops in time, and goes on when the job is started again."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from dllm_core.errors import DllmError, OptionError
from dllm_core.training.launch import Launch

# Before the time limit: to finish a step and write a checkpoint.
SECONDS_TO_STOP = 300

# Ranks are expanded in each task. In the batch shell they would all be that shell's: hence the single quotes.
_TASK = """\
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE={processes}
exec "$@"
"""

_BODY = """\
set -u
cd {folder}
# bash expands this once for the whole job, which is right for the machine where all meet.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

# Told to stop, by the time limit (USR1, {seconds} seconds before it) or by preemption (TERM): every task finishes its
# step, writes a checkpoint and exits.
stopped= tasks=
stop() {{ stopped=yes; [ -z "$tasks" ] || kill -TERM "$tasks"; }}
trap stop USR1 TERM

srun --kill-on-bad-exit=1 bash -c {task} \\
  task {command} &
tasks=$!
wait "$tasks"; status=$?
while kill -0 "$tasks" 2>/dev/null; do wait "$tasks"; status=$?; done  # a signal ends wait early

if [ -n "$stopped" ] && [ "$status" -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"  # --resume goes on from the checkpoint
fi
exit "$status"
"""


def slurm_script(launch: Launch, arguments: Sequence[str], *, output: Path, options: Iterable[str] = ()) -> str:
    """A script for sbatch: one task a process, started anew from the last checkpoint until the training is finished.

    Args:
        launch: with its number of processes a machine.
        arguments: those of ``dllm train``.
        output: of the training; the job's log goes there.
        options: of sbatch, ``key=value`` or ``key``; they win over those that stand here, ``key=`` takes one away.

    Raises:
        OptionError: an option that is not of this form.
    """
    chosen = {
        "job-name": f"dllm-{output.name}",
        "nodes": str(launch.nodes),
        "ntasks-per-node": str(launch.processes),
        "gpus-per-node": str(launch.processes),
        "output": str(output.absolute() / "slurm-%j.log"),
        "open-mode": "append",
        "requeue": "",
        "signal": f"B:USR1@{SECONDS_TO_STOP}",
    } | dict(map(_option, options))
    header = [f"#SBATCH --{name}={value}".rstrip("=") for name, value in chosen.items() if value is not None]
    resumed = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
    body = _BODY.format(
        folder=shlex.quote(str(Path.cwd())),
        seconds=SECONDS_TO_STOP,
        task=shlex.quote(_TASK.format(processes=launch.processes)),
        command=shlex.join([sys.executable, "-m", "dllm_core", "train", *resumed]),
    )
    return "\n".join(["#!/bin/bash", *header, "", body])


def submit(script: Path) -> str:
    """Hand the script to sbatch; what it says, for example ``Submitted batch job 4711``.

    Raises:
        DllmError: there is no sbatch here, or it refuses.
    """
    try:
        done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise DllmError(f"no sbatch on this machine; copy {script} to one that has it, and submit it there") from error
    if done.returncode:
        raise DllmError(f"sbatch refuses {script}: {done.stderr.strip()}; change it with --slurm-option KEY=VALUE")
    return done.stdout.strip()


def _option(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    name = name.strip().lstrip("-").replace("_", "-")
    if not name or " " in name or "\n" in text:
        raise OptionError(f"--slurm-option must be KEY=VALUE, for example time=24:00:00; got {text!r}")
    return name, None if equals and not value.strip() else value.strip()
