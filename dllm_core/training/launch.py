"""Several processes: which engine a training runs on, and the command that starts it on every device.

The processes are started by torchrun. (On a CPU accelerate's own launcher starts one process and says nothing.) In each
of them `dllm train` is called with the same arguments and finds itself among others; `check_engine` then holds what
came about against what was asked for, because the libraries below fall back without a word: FSDP on a CPU becomes DDP.
"""

from __future__ import annotations

import atexit
import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_core.config import at_least, one_of
from dllm_core.errors import OptionError
from dllm_core.training.recipes import Recipe

if TYPE_CHECKING:
    from dllm_core.training.trainer import DiffusionTrainer

ENGINES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp")
# A process that is told to stop finishes its step and writes a checkpoint; torchrun would kill it after 30 seconds.
SECONDS_TO_SAVE = 600
_ENGINE_KEYS = ("deepspeed", "fsdp", "fsdp_config")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Where a training runs.

    Args:
        engine: ``single`` (one process), ``ddp`` (a copy of the model on every device), ``zero1``, ``zero2``, ``zero3``
            (DeepSpeed: optimizer, and gradients, and weights spread over the devices), ``fsdp`` (FSDP2, weights spread
            over GPUs).
        processes: on each machine, one a device; None: as many as it has accelerators.
        nodes: machines.
        rendezvous: ``HOST:PORT`` of one of several machines, where all find each other.

    Raises:
        OptionError: a value out of range, or options that do not go together.
    """

    engine: str = "single"
    processes: int | None = None
    nodes: int = 1
    rendezvous: str | None = None

    def __post_init__(self) -> None:
        one_of("--launch", self.engine, ENGINES)
        at_least("--nodes", self.nodes, 1)
        if self.processes is not None:
            at_least("--processes", self.processes, 1)
        if self.engine == "single" and (self.nodes > 1 or (self.processes or 1) > 1):
            raise OptionError("--launch single is one process; choose ddp, zero1, zero2, zero3 or fsdp for several")
        if self.rendezvous is not None and not self.rendezvous.rpartition(":")[2].isdigit():
            raise OptionError(f"--rendezvous must be HOST:PORT, got {self.rendezvous!r}")

    def counted(self) -> Launch:
        """The same with the number of processes filled in.

        Raises:
            OptionError: nothing was said and there is no accelerator to count.
        """
        if self.processes is not None or self.engine == "single":
            return dataclasses.replace(self, processes=self.processes or 1)
        import torch

        count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
        if count == 0:
            raise OptionError("--processes: no accelerator here to count; say how many processes a machine runs")
        return dataclasses.replace(self, processes=count)

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return (self.processes or 1) * self.nodes


def is_worker() -> bool:
    """Whether this process is one of several that a launcher started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


class WorkerEnd:
    """Ends a worker process whose work is done behind its exit handlers, in front of the interpreter's own end.

    Threads of gloo, which connects processes on CPUs, may still be letting go of the last collective's tensors. One
    that meets an interpreter that is ending aborts the process (torch 2.13), and the whole training counts as failed.

    Make it before anything is imported whose exit handlers count: they run in reverse order, this one is to be last.
    """

    def __init__(self) -> None:
        self._code: int | None = None
        atexit.register(self._end)

    def with_code(self, code: int) -> None:
        """The work is done; the process is to end with this exit code."""
        self._code = code

    def _end(self) -> None:
        if self._code is not None and is_worker():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._code)


def torchrun_command(launch: Launch, arguments: Sequence[str]) -> list[str]:
    """What starts the processes of one machine.

    Args:
        launch: with its number of processes.
        arguments: those of ``dllm train``.

    Raises:
        OptionError: several machines and no place to meet.
    """
    if launch.nodes > 1 and launch.rendezvous is None:
        raise OptionError(
            "--nodes needs --rendezvous HOST:PORT, a free port of one of the machines, and the same command on each of "
            "them; under Slurm use --slurm"
        )
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", launch.rendezvous, "--rdzv-id", "dllm"]
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", str(launch.nodes), "--nproc-per-node", str(launch.processes)),
        *(["--standalone"] if launch.nodes == 1 else meeting),
        *("--shutdown-timeout", str(SECONDS_TO_SAVE)),
        *("-m", "dllm_core", "train", *arguments),
    ]


def run_torchrun(command: Sequence[str]) -> int:
    """Run what `torchrun_command` gave, in this process; the exit code is that of the worker that failed first."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(list(command[3:]))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as error:  # the workers got the signal too, and were waited for
        return 128 + error.sigval.value
    return 0


def with_engine(recipe: Recipe, engine: str) -> Recipe:
    """The recipe with the engine's settings in its section ``training``, in the place of any others.

    Raises:
        OptionError: the engine is not installed, or does not go with 4-bit weights.
    """
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise OptionError(f"--launch {engine} needs DeepSpeed: pip install 'dllm-core[deepspeed]'")
    if recipe.model.load_in_4bit and engine in ("zero3", "fsdp"):
        raise OptionError(f"--launch {engine} cannot spread 4-bit weights; use ddp, zero1 or zero2")
    own = {name: value for name, value in recipe.training.items() if name not in _ENGINE_KEYS}
    return dataclasses.replace(recipe, training={**own, **engine_arguments(engine)})


def engine_arguments(engine: str) -> dict[str, object]:
    """The training arguments that choose an engine; its settings lie in the folder ``launchers``."""
    if engine.startswith("zero"):
        return {"deepspeed": _settings(engine)}
    if engine == "fsdp":
        return {"fsdp": "full_shard", "fsdp_config": _settings(engine)}
    return {}


def _settings(engine: str) -> Mapping[str, object]:
    file = Path(__file__).parent / "launchers" / f"{engine}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def check_world(launch: Launch) -> None:
    """Raise where the processes that run are not those that were asked for.

    Raises:
        OptionError: see above.
    """
    running = int(os.environ.get("WORLD_SIZE", "1"))
    if running != launch.world_size:
        raise OptionError(
            f"--launch {launch.engine} asks for {launch.world_size} processes, {running} run; start them with 'dllm "
            "train' itself, or with torchrun and the same number"
        )


def check_engine(trainer: DiffusionTrainer) -> None:
    """Raise where the trainer does not run on the engine that its arguments ask for.

    Raises:
        OptionError: FSDP or DeepSpeed was asked for and another engine took over, or FSDP has nothing to wrap.
    """
    args, accelerator = trainer.args, trainer.accelerator
    found = accelerator.distributed_type.value
    wanted = "DEEPSPEED" if args.deepspeed else "FSDP" if args.fsdp else None
    if wanted is None and found.startswith("MULTI_"):  # of one process too, where torchrun started it
        wanted = found
    elif wanted is None and args.world_size > 1:
        wanted = "MULTI_..."
    if found != (wanted or "NO") or accelerator.num_processes != args.world_size:
        hint = "; FSDP needs GPUs: use ddp or zero3 on a CPU" if args.fsdp else ""
        raise OptionError(
            f"training was asked to run as {wanted or 'NO'} with {args.world_size} processes, and would run as {found} "
            f"with {accelerator.num_processes}{hint}"
        )
    if args.fsdp and not trainer.denoiser.bare_model._no_split_modules:
        raise OptionError(
            f"FSDP does not know the blocks of {type(trainer.denoiser.bare_model).__name__}: it has no "
            "_no_split_modules; use ddp or zero3"
        )
