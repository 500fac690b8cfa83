"""docs/plugin-reference.md has every hook with its arguments and every field of every spec, as they are in the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dllm_core import conformance, hookspecs
from dllm_core.conformance.runner import CLASSES
from dllm_core.plugins import HEAVY_MODULES, HOOKS, KINDS

TEXT = (Path(__file__).parents[1] / "docs/plugin-reference.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| `(.+?)` \| (?:`(.+?)`|(required)) \| (.+) \|$", re.MULTILINE)
DATACLASSES = {name: value for name, value in vars(hookspecs).items() if dataclasses.is_dataclass(value)}


def sections(text: str) -> dict[str, str]:
    """Title of each third-level section, without its backquotes -> its text."""
    parts = re.split(r"^### `(.+)`$", re.split(r"^## Around", text, flags=re.MULTILINE)[0], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def signature(hook: Callable) -> str:
    """``dllm_objectives() -> Iterable[ObjectiveSpec]``; annotations stand as they were written."""
    return f"{hook.__name__}{str(inspect.signature(hook)).replace(chr(39), '')}"


def own_fields(spec: type) -> dict[str, tuple[str, str]]:
    """Field -> (type, default) as the page has to write them, without those of the base."""
    inherited = {
        field.name for base in spec.__bases__ if base in DATACLASSES.values() for field in dataclasses.fields(base)
    }
    return {
        field.name: (field.type, default(field)) for field in dataclasses.fields(spec) if field.name not in inherited
    }


def default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else repr(field.default)


def described_fields(text: str) -> dict[str, tuple[str, str]]:
    # In a table a bar has to be escaped.
    return {name: (kind.replace("\\|", "|"), value or needed) for name, kind, value, needed, _ in ROW.findall(text)}


def test_every_hook_stands_there_with_its_arguments() -> None:
    described = [title for title in sections(TEXT) if title.startswith("dllm_")]
    assert described == [signature(getattr(hookspecs, name)) for name in HOOKS]


def test_every_dataclass_has_a_section_and_no_other() -> None:
    described = {title for title in sections(TEXT) if not title.startswith("dllm_")}
    assert described == set(DATACLASSES)


@pytest.mark.parametrize("name", DATACLASSES)
def test_every_field_stands_there_with_type_and_default(name: str) -> None:
    text = sections(TEXT)[name]
    assert described_fields(text) == own_fields(DATACLASSES[name])
    assert ("No fields of its own." in text) == (not own_fields(DATACLASSES[name]))


def test_every_kind_names_its_test_class() -> None:
    described = sections(TEXT)
    for kind, (test_class, _) in CLASSES.items():
        if test_class is not None:
            assert f"Test class: `{test_class}`" in " ".join(described[KINDS[kind].__name__].split())
            assert test_class in conformance.__all__


def test_what_may_not_be_imported_is_named() -> None:
    assert all(module in TEXT for module in HEAVY_MODULES)


def test_the_comparison_sees_what_is_missing() -> None:
    """A hook with another argument, a field that nobody described, and one whose default changed."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class SamplerSpec(hookspecs.Spec):
        defaults: dict[str, object] = dataclasses.field(default_factory=lambda: {"steps": 1})
        speed: int

    def dllm_samplers(host: str) -> None: ...

    described = described_fields(sections(TEXT)["SamplerSpec"])
    assert set(own_fields(SamplerSpec)) - set(described) == {"speed"}
    assert own_fields(SamplerSpec)["defaults"] != described["defaults"]
    assert signature(dllm_samplers) not in sections(TEXT)
