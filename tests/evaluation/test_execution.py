"""Programs that a model wrote: what they may do, what they may not, and how many of them count as right."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("resource")

from dllm_core.errors import OptionError
from dllm_core.evaluation import execution
from dllm_core.evaluation.execution import Limits, estimate_pass_at_k, pass_at_k, run_program, solve

TIGHT = Limits(cpu_seconds=1, wall_seconds=2.0, memory=256 << 20, disk=1 << 20, processes=32)
RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a * b\n"
TESTS = "assert add(2, 3) == 5"


@pytest.fixture
def allowed(monkeypatch) -> None:
    monkeypatch.setenv(execution.SWITCH, "1")


@pytest.fixture(scope="module")
def is_isolated() -> bool:
    return run_program("pass").isolated


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 + 1 == 2", ""),
        ("assert 1 + 1 == 3", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended before its tests did, with status 0"),
        ("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
        ("while True: print('x' * 10000)", "1 s of processor time"),
        ("while True: pass", "1 s of processor time"),
        ("import time; time.sleep(100)", "killed after 2 s"),
        ("import os, time; os.setsid(); time.sleep(100)", "killed after 2 s"),
        ("try:\n    while True: pass\nexcept BaseException: pass", "1 s of processor time"),
        ("b = bytearray(1 << 33)", "MemoryError"),
        ("all = []\nwhile True: all.append(bytearray(1 << 20))", "MemoryError"),
        ("import os\nwhile True: os.fork()", "os.fork is not allowed"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen is not allowed"),
        ("import os; os.system('true')", "os.system is not allowed"),
        ("import ctypes; ctypes.CDLL(None).fork()", "ctypes.dlopen is not allowed"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "socket.getaddrinfo is not allowed"),
        ("import socket; socket.socket().connect(('127.0.0.1', 9))", "is not allowed"),
        ("import asyncio\nasync def f(): return 3\nassert asyncio.run(f()) == 3", ""),
        ("import socket; a, b = socket.socketpair(); a.connect('x')", "socket.connect is not allowed"),
        ("open('/proc/self/environ')", "environment"),
        ("open('own', 'w').write('x'); assert open('own').read() == 'x'", ""),
        ("open('own', 'wb').write(bytes(1 << 22))", "OSError"),
        ("import os; os.kill(os.getppid(), 9)", "os.kill is not allowed"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))", "resource.setrlimit is not allowed"),
    ],
)
def test_what_becomes_of_programs(program, reason):
    waits = "killed after" in reason
    outcome = run_program(program, TIGHT if waits else replace(TIGHT, wall_seconds=60.0))  # on a machine that is busy
    assert outcome.passed == (not reason)
    assert reason in outcome.reason
    assert "\n" not in outcome.reason


def test_threads_end():
    bomb = "import threading, time\nfor _ in range(9999): threading.Thread(target=time.sleep, args=(99,)).start()"
    assert "can't start new thread" in run_program(bomb, TIGHT).reason


def test_nothing_outside_the_folder_is_written(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    attempts = (f"open({str(victim)!r}, 'w')", f"import os; os.remove({str(victim)!r})",
                f"import os; os.rename({str(victim)!r}, 'mine')", f"import os; os.mkdir({str(tmp_path / 'new')!r})",
                f"import os; os.symlink({str(victim)!r}, 'link'); open('link', 'w')")  # fmt: skip
    for attempt in attempts:
        assert "PermissionError" in run_program(attempt, TIGHT).reason
    assert victim.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [victim]


def test_nothing_of_the_environment_is_seen(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run_program("import os; assert 'secret' not in str(os.environ), os.environ").passed


def test_other_processes_are_not_seen(is_isolated):
    if not is_isolated:
        pytest.skip("this machine lets nobody make namespaces")
    assert run_program("import os; assert [d for d in os.listdir('/proc') if d.isdigit()] == ['1']").passed


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_program("open('file', 'w').write('x')")
    assert not list(tmp_path.iterdir())


def test_a_program_cannot_call_itself_right():
    forged = """
import os
for number in range(3, 64):
    try:
        os.write(number, b'{"token": "guess", "reason": ""}\\n')
    except OSError:
        pass
os._exit(0)
"""
    assert not run_program(forged, TIGHT).passed


def behind(layer: str, attack: str, folder: Path) -> subprocess.CompletedProcess:
    """An attack with one layer alone between it and the machine."""
    head = f"import sys, os\nsys.path.insert(0, {str(execution.JAIL.parent)!r})\nimport jail\n"
    command = [sys.executable, "-I", "-B", "-c", head + layer + attack]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=False)


def test_the_interpreters_block_alone_stops_what_is_honest(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    hook = "jail.forbid(os.getcwd())\n"
    for attack in ("import socket; socket.socket()", "os.fork()", f"open({str(tmp_path / 'x')!r}, 'w')",
                   "import multiprocessing as m; m.get_context('spawn').Process(target=print).start()",
                   "import ctypes; ctypes.CDLL(None)", "import _posixsubprocess as p; p.fork_exec()"):  # fmt: skip
        assert behind(hook, attack, folder).returncode != 0, attack
    assert behind(hook, "open('x', 'w').close(); open('x').close()", folder).returncode == 0
    assert not (tmp_path / "x").exists()


def test_namespaces_alone_hold_what_gets_around_the_block(tmp_path, is_isolated):
    if not is_isolated:
        pytest.skip("this machine lets nobody make namespaces")
    folder, victim = tmp_path / "folder", tmp_path / "victim"
    folder.mkdir()
    layer = "assert jail.isolate(os.getcwd(), 1 << 20)\nif os.fork(): sys.exit(os.wait()[1] >> 8)\n"
    layer += "jail.drop_capabilities()\n"
    for attack, says in (
        (f"open({str(victim)!r}, 'w')", "Read-only file system"),
        ("import socket; socket.create_connection(('192.0.2.1', 9), 5)", "Network is unreachable"),
        ("import ctypes; assert ctypes.CDLL(None).mount(None, b'/', None, 4128, None) == 0", "AssertionError"),
        ("for n in range(9): open(str(n), 'wb').write(bytes(1 << 18))", "No space left"),
        ("assert os.getpid() != 1, 'alone'", "alone"),
    ):
        ran = behind(layer, attack, folder)
        assert ran.returncode != 0, attack
        assert says in ran.stderr, attack
    assert not victim.exists()
    assert not list(folder.iterdir())


def test_solutions_are_judged_by_their_tests(allowed):
    assert [outcome.passed for outcome in solve([RIGHT, WRONG, RIGHT], TESTS)] == [True, False, True]
    assert pass_at_k([TESTS], [[RIGHT]], k=1) == {"pass@1": 1.0}
    assert pass_at_k([TESTS, TESTS], [[RIGHT, WRONG], [WRONG, WRONG]], k=[1, 2]) == {"pass@1": 0.25, "pass@2": 0.5}


@pytest.mark.parametrize(("samples", "correct"), [(1, 0), (1, 1), (4, 1), (5, 3), (6, 6)])
def test_pass_at_k_is_the_share_of_all_choices_of_k(samples, correct):
    verdicts = [True] * correct + [False] * (samples - correct)
    for k in range(1, samples + 1):
        choices = list(itertools.combinations(verdicts, k))
        assert estimate_pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_what_was_not_allowed_does_not_run(monkeypatch):
    monkeypatch.delenv(execution.SWITCH, raising=False)
    with pytest.raises(OptionError, match="--allow-code-execution"):
        pass_at_k([TESTS], [[RIGHT]])


def test_limits_and_k_out_of_range_are_refused(allowed):
    for wrong in ({"cpu_seconds": 0}, {"memory": -1}, {"wall_seconds": 0.0}):
        with pytest.raises(OptionError):
            Limits(**wrong)
    with pytest.raises(OptionError, match="at least 2 samples"):
        pass_at_k([TESTS], [[RIGHT]], k=2)


def test_only_the_first_process_runs_programs(allowed, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(execution, "run_program", lambda *_: pytest.fail("a program ran"))
    assert pass_at_k([TESTS], [[RIGHT]], k=1) == {"pass@1": 0.0}
