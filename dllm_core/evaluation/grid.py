"""The grid of a benchmark: samplers x values of options, each cell checked before anything runs.

A commit rule or cache policy brings options of its own, so an option need not fit every cell: ``threshold`` says
nothing to the cell whose rule is the quota. It is left out there, and cells that come to the same are one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dllm_core import registry
from dllm_core.config import parse_assignments
from dllm_core.errors import OptionError, did_you_mean
from dllm_core.samplers import parts


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A sampler with its options.

    Args:
        sampler: full id.
        options: what is set of it, the preset's own defaults included.
        label: what tells it from the other cells.
    """

    sampler: str
    options: Mapping[str, object] = field(default_factory=dict)
    label: str = ""


def parse_varied(texts: Sequence[str]) -> dict[str, list[object]]:
    """``["cache=none,dual", "threshold=0.8,0.9"]`` as the values of each option.

    Values that hold commas are written as a YAML list: ``suppress_tokens=[[1, 2], [3]]``.

    Raises:
        OptionError: no ``=``, no value, or the same option twice.
    """
    varied: dict[str, list[object]] = {}
    for text in texts:
        ((name, value),) = parse_assignments([text]).items()
        values = value if isinstance(value, list) else _split(text)
        if name in varied:
            raise OptionError(f"option {name!r} is varied twice; give all of its values at once: {name}=A,B")
        if not values:
            raise OptionError(f"option {name!r} has no values to vary; write {name}=A,B")
        varied[name] = values
    return varied


def _split(text: str) -> list[object]:
    name, _, values = text.partition("=")
    return [parse_assignments([f"{name}={value.strip()}"]).popitem()[1] for value in values.split(",") if value.strip()]


def grid(samplers: Sequence[str], fixed: Mapping[str, object], varied: Mapping[str, Sequence[object]]) -> list[Cell]:
    """Every sampler with every combination of the varied options, without repetition.

    Args:
        samplers: names, or ids ``plugin/name``.
        fixed: options of every cell that has them.
        varied: values by option; they win over `fixed` and over the defaults of a preset.

    Raises:
        UnknownComponentError: no such sampler, rule or policy.
        OptionError: a value is out of range, or no cell has an option of that name.
    """
    cells: dict[str, Cell] = {}
    known: set[str] = set()
    for name, values in itertools.product(samplers, itertools.product(*varied.values())):
        component = registry.find("sampler", name)
        chosen = {**fixed, **dict(zip(varied, values, strict=True))}
        options = component.spec.defaults | chosen
        options_class = registry.load("sampler", component.full_id).options_class
        names = parts.option_names(options_class, options)
        known |= names
        cell = Cell(sampler=component.full_id, options={key: options[key] for key in options if key in names})
        parts.build(options_class, cell.options)  # ranges
        cells.setdefault(repr((cell.sampler, sorted(cell.options.items()))), cell)
    for option in [*fixed, *varied]:
        if option not in known:
            raise OptionError(f"no sampler of this benchmark has an option {option!r}.{did_you_mean(option, known)}")
    return list(_labelled(list(cells.values()), varied))


def _labelled(cells: Sequence[Cell], varied: Mapping[str, object]) -> Iterator[Cell]:
    """The cells by what differs among them: the sampler, and the varied options that they have."""
    several = len({cell.sampler for cell in cells}) > 1
    for cell in cells:
        words = [_short(cell.sampler)] if several or not varied else []
        words += [f"{name}={cell.options[name]}" for name in varied if name in cell.options]
        yield Cell(sampler=cell.sampler, options=cell.options, label=" ".join(words) or _short(cell.sampler))


def _short(full_id: str) -> str:
    return full_id.removeprefix("core/")
