"""What a plugin does when it is the first thing that a process imports.

``python -m dllm_core.conformance.fresh MODULE`` reports it as JSON; `fresh_import` runs that. So this file imports
nothing heavy itself.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from dllm_core.plugins import HEAVY_MODULES, HOOKS

KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
MARK = "dllm conformance: "  # what stands before the report, so that prints of the plugin are told from it


@dataclass(frozen=True)
class FreshImport:
    """What was seen.

    Args:
        seconds: that the plugin's import takes, without Python's own and the core's.
        heavy: heavy modules that the plugin and its hooks import.
        changed: what of the process it changes, in words.
        pure: its hooks yield the same specs twice.
        printed: what it writes to stdout and stderr.
    """

    seconds: float
    heavy: tuple[str, ...]
    changed: tuple[str, ...]
    pure: bool
    printed: str = ""


@functools.cache
def fresh_import(module: str, path: str) -> FreshImport:
    """Import a plugin's module, and call its hooks twice, in a process that finds modules on `path`."""
    command = [sys.executable, "-P", "-m", __name__, module]
    # What a plugin has set in this process must not look as if it had always been there.
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("PYTHON")}
    environment = kept | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    printed, _, report = done.stdout.partition(MARK)
    last = (done.stderr.strip().splitlines() or ["it ended early"])[-1]
    if not report:
        raise AssertionError(f"in a process of its own {module} does not run: {last}; let it import all that it needs")
    return FreshImport(**json.loads(report) | {"printed": printed + done.stderr})


def observe(module: str) -> FreshImport:
    """Import a plugin's module in this process, and call its hooks twice."""
    before, started = _traces(), time.perf_counter()
    plugin = importlib.import_module(module)
    seconds = time.perf_counter() - started
    hooks = [getattr(plugin, name) for name in HOOKS if hasattr(plugin, name)]
    first, second = ([list(hook()) for hook in hooks] for _ in range(2))
    return FreshImport(
        seconds=seconds,
        heavy=tuple(name for name in HEAVY_MODULES if name in sys.modules),
        changed=tuple(name for name, value in _traces().items() if value != before[name]),
        pure=first == second,
    )


def _traces() -> dict[str, object]:
    return {
        "environment variables": dict(os.environ),
        "the working folder": os.getcwd(),
        "sys.path": list(sys.path),
        "the root logger": (logging.root.level, len(logging.root.handlers)),
        "sys.excepthook": sys.excepthook is sys.__excepthook__,
    }


if __name__ == "__main__":
    print(MARK + json.dumps(asdict(observe(sys.argv[1]))))
