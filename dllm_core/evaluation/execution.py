"""Running what a model wrote, and pass@k of it.

Tasks name `pass_at_k` as their metric, with ``unsafe_code: true``::

    metric_list:
      - metric: !function my_module.pass_at_k     # from dllm_core.evaluation.execution import pass_at_k
        aggregation: mean
        higher_is_better: true
        k: [1]

Each program runs in a process, a folder and an environment of its own, see `jail`. Nothing runs unless it was asked
for: ``dllm eval --allow-code-execution``, or ``HF_ALLOW_CODE_EVAL=1`` as everywhere else in the field.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from dllm_core.config import at_least
from dllm_core.errors import OptionError
from dllm_core.evaluation.processes import rank_and_size

SWITCH = "HF_ALLOW_CODE_EVAL"  # what the `evaluate` library asks for
JAIL = Path(__file__).with_name("jail.py")
START_SECONDS = 60.0  # for the interpreter to come up, on a machine that is busy
LONGEST_ANSWER = 65536  # bytes that are read of what a program says of itself
# Nothing of ours, no tokens and no proxies; one thread for numerical libraries, whose stacks count as memory.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"} | {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use.

    Args:
        cpu_seconds: processor time; the official HumanEval code allows three seconds of wall time, which depends on
            what else the machine does.
        wall_seconds: for programs that wait.
        memory: bytes of address space.
        disk: bytes that it may write into its folder.
        processes: threads; for root the kernel sets no such limit.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 12.0
    memory: int = 1 << 30
    disk: int = 16 << 20
    processes: int = 256

    def __post_init__(self) -> None:
        for name in ("cpu_seconds", "memory", "disk", "processes"):
            at_least(name, getattr(self, name), 1)
        if not self.wall_seconds > 0:
            raise OptionError(f"wall_seconds must be above 0, got {self.wall_seconds}")


@dataclass(frozen=True)
class Outcome:
    """What came of a program.

    Args:
        passed: it ran to its end.
        reason: what went wrong, one line; empty where nothing did.
        isolated: it ran in namespaces of its own; False where only limits and the interpreter's hook held it.
    """

    passed: bool
    reason: str
    isolated: bool


def pass_at_k(references: Sequence[str], predictions: Sequence[Sequence[str]], k: int | Sequence[int] = 1) -> dict:
    """The metric for tasks: the share of documents that one of k samples solves, estimated without bias.

    A candidate solves a document if candidate, line break, reference runs to its end: the candidate is the whole
    program (with the prompt's head, where there is one), the reference is the tests and the call of them.

    Args:
        references: test code, one text a document.
        predictions: candidates, a list a document.
        k: one number or several, none above the number of candidates.

    Returns:
        ``{"pass@1": 0.5, ...}``. Processes other than the first, whose scores nobody reads, run nothing and say 0.

    Raises:
        OptionError: running code was not allowed, or k is out of range.
    """
    wanted = [k] if isinstance(k, int) else list(k)
    check_allowed()
    if rank_and_size()[0] != 0:
        return {f"pass@{number}": 0.0 for number in wanted}
    counted = [(len(own), sum(outcome.passed for outcome in solve(own, reference)))
               for own, reference in zip(predictions, references, strict=True)]  # fmt: skip
    return {f"pass@{n}": sum(estimate_pass_at_k(*each, n) for each in counted) / len(counted) for n in wanted}


def solve(candidates: Sequence[str], tests: str, limits: Limits | None = None) -> list[Outcome]:
    """What comes of each candidate with the tests behind it; the same text is run once."""
    programs = [f"{candidate}\n{tests}" for candidate in candidates]
    different = list(dict.fromkeys(programs))
    with ThreadPoolExecutor(max(1, min(len(different), os.cpu_count() or 1))) as pool:
        found = dict(zip(different, pool.map(lambda program: run_program(program, limits), different), strict=True))
    return [found[program] for program in programs]


def estimate_pass_at_k(samples: int, correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k), the unbiased estimate of Chen et al. 2021 (arXiv 2107.03374, equation 1).

    Args:
        samples, correct: n and c.
        k: how many may be tried, 1 ... n.

    Raises:
        OptionError: k is out of range.
    """
    if not 1 <= k <= samples:
        raise OptionError(
            f"pass@{k} takes at least {k} samples of each document, got {samples}; set the task's repeats"
        )
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def check_allowed() -> None:
    """Raise OptionError unless running code was asked for, or where it cannot be held."""
    if os.environ.get(SWITCH) != "1":
        raise OptionError(
            f"scoring this task runs code that the model wrote; allow it with --allow-code-execution or {SWITCH}=1"
        )
    if os.name != "posix":
        raise OptionError(
            "code of a model is run on Linux and macOS only, where the kernel can limit it; score it there"
        )


def run_program(program: str, limits: Limits | None = None) -> Outcome:
    """Run a program in a jail.

    Args:
        program: Python source; it gets no arguments and no input, what it prints is dropped.
        limits: None: the defaults.

    Raises:
        RuntimeError: the jail itself did not start.
    """
    limits = limits or Limits()
    order = asdict(limits) | {"program": program, "token": secrets.token_hex(16)}
    reading, writing = os.pipe()
    command = [sys.executable, "-I", "-B", str(JAIL), str(writing)]
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with (
        tempfile.TemporaryDirectory(prefix="dllm-code-", ignore_cleanup_errors=True) as folder,
        open(reading, "rb") as end,
    ):
        process = subprocess.Popen(
            command, cwd=folder, env=ENVIRONMENT, pass_fds=[writing], start_new_session=True, **quiet
        )
        os.close(writing)
        started = answer = None
        try:
            _send(process, json.dumps(order).encode())
            started = _message(end.fileno(), START_SECONDS)
            answer = _message(end.fileno(), limits.wall_seconds) if started else None
        finally:
            status = _end(process, 0.0 if answer else 0.5)
    if started is None:
        raise RuntimeError(f"the process that runs code did not start (exit status {status}); see {JAIL}")
    if answer is None or answer.get("token") != order["token"]:
        return Outcome(False, _why(status, limits), started["isolated"])
    return Outcome(not answer["reason"], answer["reason"], started["isolated"])


def holder() -> str:
    """What holds programs on this machine: ``namespaces``, or ``interpreter`` where those are not permitted."""
    return "namespaces" if run_program("").isolated else "interpreter"


def _why(status: int | None, limits: Limits) -> str:
    """What ended a program that did not say so itself."""
    if status is None:
        return f"killed after {limits.wall_seconds:g} s, or for writing where it should not"
    if status in (128 + signal.SIGXCPU, 128 + signal.SIGKILL):  # the soft limit's signal and the hard one's
        return f"killed after {limits.cpu_seconds} s of processor time"
    return f"ended before its tests did, with status {status}"


def _send(process: subprocess.Popen, order: bytes) -> None:
    try:
        process.stdin.write(order)
        process.stdin.close()
    except BrokenPipeError:  # it did not even start; its silence says so
        return


def _message(pipe: int, seconds: float) -> dict | None:
    """The next message of a jail; None where it ends, floods the pipe or lets the time pass without one."""
    end, read = time.monotonic() + seconds, b""
    while not read.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
        some = os.read(pipe, 1) if ready else b""
        if not some or len(read) > LONGEST_ANSWER:
            return None
        read += some
    try:
        found = json.loads(read)
    except ValueError:  # the program found the pipe and wrote into it
        return None
    return found if isinstance(found, dict) else None


def _end(process: subprocess.Popen, patience: float) -> int | None:
    """End a jail with everything in it; its exit status, None where it had to be killed after `patience` seconds."""
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
