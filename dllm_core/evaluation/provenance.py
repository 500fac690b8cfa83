"""What a result was made with, so that it can be made again."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dllm_core import __version__
from dllm_core.plugins import plugin_host

REPORTED = ("torch", "transformers", "accelerate", "datasets", "lm_eval")


def versions() -> dict[str, object]:
    """Versions of the core, of the plugins, and of what evaluation rests on."""
    plugins = {record.name: record.version for record in plugin_host().records if record.state == "ok"}
    return {"dllm-core": __version__} | {name: _version(name) for name in REPORTED} | {"plugins": plugins}


def commit() -> str | None:
    """The commit of the source that runs, with ``+`` where files differ from it; None for an installed wheel."""
    folder = Path(__file__).parent
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
