"""What the files around the code promise: versions, pins, the README's commands, sizes, nothing of one machine."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dllm_core

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
PROJECTS = [ROOT, *PLUGINS]
COMMANDS = ["pip install -r requirements.txt && dllm run", "pip install -r requirements-dev.txt && pytest"]
LONGEST_FILE = 500
LONGEST_FUNCTION = 40  # without its docstring
MACHINE = re.compile(r"(?<![\w.>)}\]])/(?:work|tmp|root|home|opt|mnt|Users|farm)/\w")
MODULES = {"pillow": "PIL", "pyyaml": "yaml"}  # distributions whose module has another name
USED_WHERE_INSTALLED = {"cut_cross_entropy"}  # kernels for one kind of accelerator; nothing here installs them


def pyproject(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def lines(name: str) -> list[str]:
    """A requirements file without comments."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    return {
        canonicalize_name(name): version for name, version in (line.split("==") for line in lines("constraints.txt"))
    }


def declared() -> list[Requirement]:
    """What the distributions of this repository and its tests ask for, themselves left out."""
    asked = [text for folder in PROJECTS for text in pyproject(folder)["project"]["dependencies"]]
    asked += itertools.chain(*pyproject(ROOT)["project"]["optional-dependencies"].values())
    asked += [line for line in lines("requirements-dev.txt") if not line.startswith("-")]
    own = {pyproject(folder)["project"]["name"] for folder in PROJECTS}
    return [requirement for requirement in map(Requirement, asked) if requirement.name not in own]


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def python_files() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_one_version_a_distribution(folder: Path) -> None:
    version = pyproject(folder)["project"]["version"]
    module = next((folder / "src" if folder in PLUGINS else folder).glob("dllm_*/__init__.py"))
    assert f'__version__ = "{version}"' in module.read_text(encoding="utf-8")
    assert f"## {version}" in (folder / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugin_takes_this_core_and_not_the_next_minor(folder: Path) -> None:
    requirements = map(Requirement, pyproject(folder)["project"]["dependencies"])
    specifier = next(requirement.specifier for requirement in requirements if requirement.name == "dllm-core")
    major, minor, _ = dllm_core.__version__.split(".")
    assert dllm_core.__version__ in specifier
    assert f"{major}.{int(minor) + 1}.0" not in specifier


def test_every_dependency_is_pinned_within_its_bounds_and_nothing_else_is() -> None:
    pinned, asked = pins(), declared()
    assert {canonicalize_name(requirement.name) for requirement in asked} == set(pinned)
    outside = [str(req) for req in asked if pinned[canonicalize_name(req.name)] not in req.specifier]
    assert outside == []


def test_the_core_imports_only_what_it_declares() -> None:
    project = pyproject(ROOT)["project"]
    texts = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = [canonicalize_name(Requirement(text).name) for text in texts]
    allowed = {
        "dllm_core",
        "_typeshed",
        *USED_WHERE_INSTALLED,
        *sys.stdlib_module_names,
        *(MODULES.get(name, name.replace("-", "_")) for name in names),
    }
    found = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in (ROOT / "dllm_core").rglob("*.py")
        for module in imported(path)
        if module not in allowed
    }
    assert found == set()


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_one_command_installs_the_core_and_every_plugin() -> None:
    expected = [
        "-c constraints.txt",
        "-e .[eval,pictures,plots,train]",
        *(f"-e plugins/{folder.name}" for folder in PLUGINS),
    ]
    assert lines("requirements.txt") == expected
    assert lines("requirements-dev.txt")[0] == "-r requirements.txt"


def test_the_readme_begins_with_two_commands_and_ci_runs_what_stands_there() -> None:
    printed = subprocess.run([ROOT / ".ci/readme-commands"], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == COMMANDS
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert ".ci/readme-commands" in script
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_a_distribution_is_complete(folder: Path) -> None:
    settings = pyproject(folder)
    assert settings["project"]["license"] == "Apache-2.0"
    assert (folder / settings["project"]["readme"]).is_file()
    packages = settings["tool"]["setuptools"]["package-data"]
    for package, data in packages.items():
        assert "py.typed" in data
        assert ((folder / "src" if folder in PLUGINS else folder) / package / "py.typed").is_file()


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_the_licence_is_whole(folder: Path) -> None:
    text = (folder / "LICENSE").read_text(encoding="utf-8")
    assert text.strip().startswith("Apache License")
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text) == 11358


def test_no_file_names_a_place_on_one_machine() -> None:
    texts = (".py", ".md", ".toml", ".txt", ".yaml", ".json", ".sh", "")
    found = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()[:80]}"
        for path in tracked()
        if path.suffix in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE.search(line)
    ]
    assert found == []


def test_files_are_short() -> None:
    sizes = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert {str(path): size for path, size in sizes.items() if size > LONGEST_FILE} == {}


def test_functions_are_short() -> None:
    shipped = [path for path in python_files() if "tests" not in path.relative_to(ROOT).parts]
    found = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": length
        for path in shipped
        for node, length in functions(path)
        if length > LONGEST_FUNCTION
    }
    assert found == {}


def functions(path: Path) -> Iterator[tuple[ast.FunctionDef, int]]:
    """Every function and its number of lines without the docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            yield node, node.end_lineno - node.lineno + 1 - docstring


def test_no_broad_except_outside_the_plugin_host() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "dllm_core").rglob("*.py")
        if path.name != "plugins.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"))
    ]
    assert found == []


def lazy_packages() -> list[Path]:
    """Packages whose names are fetched on first use."""
    return [
        path for path in ROOT.glob("dllm_core/**/__init__.py") if "_EXPORTS = {" in path.read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("path", lazy_packages(), ids=lambda path: path.parent.name)
def test_type_checkers_know_the_names_that_are_fetched_on_first_use(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assigned = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    lazy = ast.literal_eval(assigned["_EXPORTS"])
    guarded = next(node for node in tree.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING")
    known = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert {name: known.get(name) for name in lazy} == lazy
    assert set(lazy) <= set(ast.literal_eval(assigned["__all__"]))  # a literal, or type checkers cannot read it
