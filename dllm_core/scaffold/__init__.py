"""Writes a new plugin package: one that installs, works and passes its own tests, to be changed from there.

The templates are the files of the package, with a few names in double braces, in ``templates/common`` and in a folder
for each kind. They end in ``.tmpl``, so that no tool takes them for code of this package; ``dot-`` stands for the dot
of a hidden file, which wheels leave out, and ``{{tests}}`` for the folder of tests, which copies often leave out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_core import __version__
from dllm_core.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
RESERVED = ("core",)  # dllm-core, and the plugin name of its own components
PREFIX, SUFFIX = "dllm-", ".tmpl"
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Kind:
    """What a scaffold is of, in words, and what its pyproject needs.

    Args:
        description: the package's, one line; ends without a full stop.
        dependencies: distributions besides dllm-core.
        test_dependencies: distributions besides pytest.
        package_data: patterns of files that are no Python.
    """

    description: str
    dependencies: tuple[str, ...] = ("torch",)
    test_dependencies: tuple[str, ...] = ()
    package_data: tuple[str, ...] = ()


KINDS = {
    "sampler": Kind("A sampler for dllm that writes several tokens in a step where the model is sure"),
    "objective": Kind("A training objective for dllm: masked diffusion with evenly spread times"),
    "adapter": Kind("A model family for dllm: a Llama that looks both ways", dependencies=("torch", "transformers")),
    "task": Kind(
        "An evaluation task for dllm",
        dependencies=(),
        test_dependencies=("lm-eval",),
        package_data=("tasks/*",),
    ),
}


def plugin_name(text: str) -> str:
    """The plugin's name from what was typed: ``acme`` from ``acme`` and from ``dllm-acme``.

    Raises:
        OptionError: a name that no entry point, folder or module can have, or one that is taken.
    """
    name = text.removeprefix(PREFIX)
    if not NAME.fullmatch(name):
        raise OptionError(
            f"{text!r} cannot name a plugin; use lower-case letters, digits and single dashes, beginning with a "
            "letter, for instance 'my-sampler'"
        )
    if name in RESERVED:
        raise OptionError(f"{name!r} is the framework's own plugin name; choose another")
    return name


def write_package(name: str, kind: str, folder: Path) -> list[Path]:
    """Write the package of a plugin into ``folder/dllm-NAME`` and return its files, sorted.

    Args:
        name: as `plugin_name` gives it.
        kind: a key of `KINDS`.
        folder: made where it is missing.

    Raises:
        OptionError: an unknown kind, or there is something at that place already; nothing is then written.
    """
    if kind not in KINDS:
        raise OptionError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}.{did_you_mean(kind, KINDS)}")
    package = folder / f"{PREFIX}{name}"
    if package.is_file() or (package.is_dir() and any(package.iterdir())):
        raise OptionError(f"{package} is there already and nothing is overwritten; move it, or choose another --output")
    values = placeholders(name, kind)
    for relative, text in sorted(render(kind, values)):
        path = package / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return sorted(path for path in package.rglob("*") if path.is_file())


def placeholders(name: str, kind: str) -> dict[str, str]:
    """What stands for each word in double braces."""
    chosen = KINDS[kind]
    return {
        "tests": "tests",
        "name": name,
        "distribution": f"{PREFIX}{name}",
        "module": f"{PREFIX}{name}".replace("-", "_"),
        "class": "".join(part.capitalize() for part in name.split("-")),
        "description": chosen.description,
        "test_dependencies": ", ".join(f'"{text}"' for text in ("pytest", *chosen.test_dependencies)),
        "dependencies": "".join(f', "{text}"' for text in chosen.dependencies),
        "package_data": "".join(f', "{text}"' for text in chosen.package_data),
        "core_bounds": core_bounds(__version__),
    }


def core_bounds(version: str) -> str:
    """From this version up to the next that may break the contract: ``>=0.3,<0.4`` before 1.0, then ``>=1.2,<2``."""
    major, minor, *_ = version.split(".")
    return f">=0.{minor},<0.{int(minor) + 1}" if major == "0" else f">={major}.{minor},<{int(major) + 1}"


def render(kind: str, values: dict[str, str]) -> Iterator[tuple[Path, str]]:
    """The files of a package: relative path and text."""
    from importlib.resources import files  # not needed to say what there is

    templates = files(__package__).joinpath("templates")
    for folder in ("common", kind):
        for relative, template in walk(templates.joinpath(folder), Path()):
            path = Path(*(part.replace("dot-", ".", 1) if part.startswith("dot-") else part for part in relative.parts))
            yield Path(fill(str(path.with_suffix("")), values)), fill(template.read_text(encoding="utf-8"), values)


def walk(folder: Traversable, relative: Path) -> Iterator[tuple[Path, Traversable]]:
    """Every template below a folder."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from walk(entry, relative / entry.name)
        elif entry.name.endswith(SUFFIX):
            yield relative / entry.name, entry


def fill(text: str, values: dict[str, str]) -> str:
    """The text with its placeholders replaced; one that is not known is a KeyError of ours."""
    return PLACEHOLDER.sub(lambda match: values[match[1]], text)
