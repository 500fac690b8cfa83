"""The architecture's two rules over imports: seven floors in the core, and plugins only lean on what they declare."""

from __future__ import annotations

import ast
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "dllm_core"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))

# A file imports only from floors below its own, or from its own room. (docs: the same table, with the reasons.)
FLOORS = {
    "errors": 0,
    "hookspecs": 1,
    "compatibility": 1,
    "noise": 1,
    "scaffold": 1,
    "plugins": 2,
    "builtin": 2,
    "config": 1,
    "data": 2,
    "registry": 3,
    "models": 4,
    "samplers": 5,
    "objectives": 5,
    "conformance": 6,
    "display": 6,
    "editing": 6,
    "evaluation": 6,
    "training": 6,
    "utils": 6,
    "cli": 7,
    "__main__": 8,
}
MODELS_ORDER = [{"attention", "cache"}, {"adapter"}, {"denoiser"}, {"loading"}]
# Distributions whose module has another name.
MODULES = {"pyyaml": "yaml", "lm-eval": "lm_eval"}
FAMILIES = re.compile(r"llada|dream|modernbert|qwen", re.IGNORECASE)
CITES = re.compile(r"arxiv|source|official|published|paper|issue \d", re.IGNORECASE)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import statement, also those inside functions and under TYPE_CHECKING.

    ``from package import name`` counts as ``package.name``, since the name may be a module.
    """
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*parents, node.module) if node.module else parents)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(CORE).with_suffix("").parts[0]


def core_files() -> list[Path]:
    return [path for path in sorted(CORE.rglob("*.py")) if path != CORE / "__init__.py"]


def violations(path: Path) -> list[str]:
    """Imports of `path` that point to its own floor or above, or through the lazy door, behind which is everything."""
    found = []
    for line, module in imports(path):
        package, _, rest = module.partition(".")
        target = rest.partition(".")[0]
        allowed = package != "dllm_core" or target in (room(path), "__version__")
        if not allowed and FLOORS.get(target, len(FLOORS)) >= FLOORS[room(path)]:
            found.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    return found


def test_every_file_of_the_core_has_its_floor() -> None:
    assert {room(path) for path in core_files()} <= set(FLOORS)


def test_the_core_imports_downwards_only() -> None:
    assert [line for path in core_files() for line in violations(path)] == []


def test_the_check_sees_an_upward_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "CORE", tmp_path / "dllm_core")
    (tmp_path / "dllm_core/models").mkdir(parents=True)
    path = tmp_path / "dllm_core/models/loading.py"
    path.write_text(
        "from dllm_core import registry, errors\nfrom dllm_core.models import adapter\n"
        "def f():\n    from dllm_core import samplers\n    from ..training import x\n    import dllm_core.cli.run\n"
        "from dllm_core import Denoiser\n"
    )
    assert {line.partition(":")[2] for line in violations(path)} == {
        "4 imports dllm_core.samplers",
        "5 imports dllm_core.training.x",
        "6 imports dllm_core.cli.run",
        "7 imports dllm_core.Denoiser",
    }


def test_models_build_on_each_other_in_order() -> None:
    for level, names in enumerate(MODELS_ORDER):
        above = set().union(*MODELS_ORDER[level:]) - names
        for name in names & {path.stem for path in (CORE / "models").glob("*.py")}:
            used = {module.split(".")[2] for _, module in imports(CORE / f"models/{name}.py") if in_models(module)}
            assert not used & above, f"models/{name}.py imports {used & above}"


def in_models(module: str) -> bool:
    return module.startswith("dllm_core.models.") and module.count(".") >= 2


def test_the_door_of_the_core_opens_onto_the_ground_floor_only() -> None:
    tree = ast.parse((CORE / "__init__.py").read_text(encoding="utf-8"))
    at_import = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert set(at_import) == {"__future__", "typing", "dllm_core.errors", "dllm_core.hookspecs"}


def test_the_core_imports_no_plugin() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sorted(CORE.rglob("*.py"))
        for line, module in imports(path)
        if module.startswith("dllm_") and not module.startswith("dllm_core")
    ]
    assert found == []


def test_the_core_names_no_family_in_its_code() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {text!r}"
        for path in sorted(CORE.rglob("*.py"))
        for line, text in code_naming_a_family(path)
    ]
    assert found == []


def code_naming_a_family(path: Path) -> Iterator[tuple[int, str]]:
    """Tokens that name a family outside comments, docstrings and the ``source=`` of a spec, where sources are cited."""
    cited = set(citations(ast.parse(path.read_text(encoding="utf-8"))))
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type != tokenize.COMMENT and token.start[0] not in cited and FAMILIES.search(token.string):
                yield token.start[0], token.string


def citations(tree: ast.Module) -> Iterator[int]:
    """The lines of docstrings and of ``source=`` arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "source":
            yield from range(node.value.lineno, node.value.end_lineno + 1)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            yield from range(node.body[0].lineno, node.body[0].end_lineno + 1)


def test_where_the_core_names_a_family_it_cites_a_source() -> None:
    files = [path for path in sorted(CORE.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    found = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if FAMILIES.search(line) and not CITES.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugin_imports_only_what_it_declares(folder: Path) -> None:
    allowed = {*sys.stdlib_module_names, *declared_modules(folder), *declared_modules(ROOT)}
    allowed |= {path.name for path in (folder / "src").iterdir()}
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sorted((folder / "src").rglob("*.py"))
        for line, module in imports(path)
        if module.split(".")[0] not in allowed
    ]
    assert found == []


def declared_modules(folder: Path) -> set[str]:
    """The modules of the distributions that a pyproject requires, of a plugin those of its extras too."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = () if folder == ROOT else project.get("optional-dependencies", {}).values()
    requirements = [*project["dependencies"], *(each for extra in extras for each in extra)]
    names = [re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}
