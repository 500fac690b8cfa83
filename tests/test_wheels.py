"""What a user gets: wheels, built from a clean copy, installed in an empty environment, used outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
LEFT_OUT = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__", ".*", "tests", "docs", "benchmarks")
LARGEST_WHEEL = 8 * 2**20  # bytes
SAMPLE = """
import dllm_core as dllm
sampler = dllm.sampler("mdlm", dllm.load("llada-tiny"), max_new_tokens=16)
print(sampler.sample([{"role": "user", "content": "345+799="}]))
print(dllm.__file__)
"""


def call(*command: str | Path, folder: Path) -> str:
    """stdout of a program that is told nothing of the checkout or of this environment."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheels of the core and of every plugin; from a copy, as an older build/ would get into them."""
    folder = tmp_path_factory.mktemp("wheels")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    sources = [folder / "source" / path.relative_to(ROOT) for path in (ROOT, *PLUGINS)]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "dist"]
    call(*pip, *sources, folder=folder)
    return sorted((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheels and what they ask for, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", folder, folder=folder)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    call(*pip, *wheels, folder=folder)
    return folder / "bin"


def test_there_is_a_wheel_for_everything_and_none_is_large(wheels: list[Path]) -> None:
    names = [path.name.partition("-")[0] for path in wheels]
    assert names == sorted(["dllm_core", *(path.name.replace("-", "_") for path in PLUGINS)])
    assert [path.name for path in wheels if path.stat().st_size > LARGEST_WHEEL] == []


def test_a_wheel_holds_every_module_and_its_data(wheels: list[Path]) -> None:
    for wheel, folder in zip(wheels, [ROOT, *(path / "src" for path in PLUGINS)], strict=True):
        package = folder / wheel.name.partition("-")[0]
        held = set(zipfile.ZipFile(wheel).namelist())
        files = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert [path for path in files if str(path.relative_to(folder)) not in held] == []
        assert any(name.endswith("licenses/LICENSE") for name in held)


def test_nothing_is_broken(installed: Path, tmp_path: Path) -> None:
    assert "No broken requirements" in call(installed / "python", "-m", "pip", "check", folder=tmp_path)


def test_help_and_plugins(installed: Path, tmp_path: Path) -> None:
    assert "Commands:" in call(installed / "dllm", "--help", folder=tmp_path)
    listed = json.loads(call(installed / "dllm", "plugins", "--json", folder=tmp_path))
    states = {plugin["name"]: plugin["status"] for plugin in listed}
    assert states == {"core": "ok", **{path.name.removeprefix("dllm-"): "ok" for path in PLUGINS}}


def test_run_shows_the_bundled_checkpoint(installed: Path, tmp_path: Path) -> None:
    assert call(installed / "dllm", "run", "345+799=", folder=tmp_path).strip() == "1144"
    assert call(installed / "dllm", "run", folder=tmp_path).strip()


def test_python_uses_the_installed_package(installed: Path, tmp_path: Path) -> None:
    text, file = call(installed / "python", "-c", SAMPLE, folder=tmp_path).splitlines()
    assert text == "1144"
    assert Path(file).is_relative_to(installed.parent)


def test_types_are_shipped(installed: Path, tmp_path: Path) -> None:
    code = "import dllm_core, dllm_llada, pathlib; print([(pathlib.Path(m.__file__).parent / 'py.typed').exists() "
    code += "for m in (dllm_core, dllm_llada)])"
    assert call(installed / "python", "-c", code, folder=tmp_path).strip() == "[True, True]"
