"""Stands in for Slurm's commands, under the name that it is linked to: srun, scontrol, sbatch.

srun starts ``SLURM_NTASKS`` tasks with the variables of a task set, hands SIGTERM on to each of them once, and ends
with the highest of their exit codes. What the others are asked goes to the file ``FAKE_SLURM_LOG``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def srun(command: list[str]) -> int:
    tasks = [
        subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)})
        for number in range(int(os.environ["SLURM_NTASKS"]))
    ]
    signal.signal(signal.SIGTERM, lambda number, _: [task.send_signal(number) for task in tasks])
    codes = [task.wait() for task in tasks]
    return max(code if code >= 0 else 128 - code for code in codes)


def main() -> int:
    name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if name == "srun":
        return srun([argument for argument in arguments if not argument.startswith("--kill-on-bad-exit")])
    if arguments[:2] == ["show", "hostnames"]:
        print("localhost\nanother-machine")
        return 0
    with Path(os.environ["FAKE_SLURM_LOG"]).open("a") as log:
        print(name, *arguments, file=log)
    if name == "sbatch":
        print("Submitted batch job 4711")
    return 0


if __name__ == "__main__":
    sys.exit(main())
