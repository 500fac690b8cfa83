"""Options: from what a user wrote to a checked dataclass.

An option that does not exist, has the wrong type or is out of range is an `OptionError` that names it, what is allowed
and what came. Order of precedence everywhere: the dataclass's defaults, a preset, a file, then ``-o key=value``.
"""

from __future__ import annotations

import dataclasses
import operator
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dllm_core.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ConfigT = TypeVar("ConfigT", bound="DataclassInstance")

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def from_mapping(cls: type[ConfigT], mapping: Mapping[str, object], *, what: str) -> ConfigT:
    """An instance of the dataclass `cls`; missing options take their defaults.

    Args:
        cls: a dataclass; its ``__post_init__`` checks ranges.
        mapping: options by name, values typed or as text (see `coerce`).
        what: whose options these are, for messages: ``"sampler 'mdlm'"``.

    Raises:
        OptionError: an unknown option, a missing one, a wrong type, or whatever ``__post_init__`` refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in mapping:
        if name not in fields:
            raise OptionError(
                f"{what}: unknown option {name!r}.{did_you_mean(name, fields)} The options are {', '.join(fields)}"
            )
    missing = [name for name, field in fields.items() if name not in mapping and _is_required(field)]
    if missing:
        raise OptionError(f"{what}: option {missing[0]!r} is required")
    return cls(**coerce(cls, mapping))


def coerce(cls: type, mapping: Mapping[str, object]) -> dict[str, object]:
    """The same options with values in the types that the fields of `cls` declare.

    Text becomes a number or a truth value where the field asks for one, a list becomes a tuple, a whole number a float,
    numbers of numpy and torch become Python's. A value that could only be guessed at is refused; a field of any other
    type takes its value as it is.

    Raises:
        OptionError: a value that is not of the field's type.
    """
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # an annotation that only type checkers can resolve: nothing is known to convert to
        hints = {}
    return {name: _convert(name, value, hints[name]) if name in hints else value for name, value in mapping.items()}


def parse_assignments(assignments: Iterable[str]) -> dict[str, object]:
    """``["steps=64", "confidence=margin", "stop=[1, 2]"]`` as a mapping; values are read as YAML scalars or lists.

    Raises:
        OptionError: no ``=``, no name before it, a value that is not YAML, or the same option twice.
    """
    options: dict[str, object] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise OptionError(f"option {assignment!r} must have the form name=value, for example -o steps=64")
        if name in options:
            raise OptionError(f"option {name!r} is given twice")
        options[name] = _parse_value(name, text)
    return options


def at_least(name: str, value: float, minimum: float, hint: str = "") -> None:
    """Raise OptionError unless ``value >= minimum``; `hint` is the next step."""
    if not value >= minimum:  # so that not-a-number is refused too
        raise OptionError(f"{name} must be at least {minimum}, got {value}{_then(hint)}")


def within(name: str, value: float, low: float, high: float, hint: str = "") -> None:
    """Raise OptionError unless ``low <= value <= high``; `hint` is the next step."""
    if not low <= value <= high:
        raise OptionError(f"{name} must be between {low} and {high}, got {value}{_then(hint)}")


def one_of(name: str, value: object, choices: Iterable[object], hint: str = "") -> None:
    """Raise OptionError unless `value` is one of `choices`; `hint` is the next step."""
    allowed = list(choices)
    if value not in allowed:
        near = did_you_mean(str(value), [str(choice) for choice in allowed])
        listed = ", ".join(map(str, allowed))
        raise OptionError(f"{name} must be one of {listed}; got {value!r}{'.' if near else ''}{near}{_then(hint)}")


def _then(hint: str) -> str:
    return f"; {hint}" if hint else ""


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _parse_value(name: str, text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text) if text.strip() else text
    except yaml.YAMLError as error:
        raise OptionError(f"option {name!r} cannot be read from {text!r}; quote it: {name}=\"'...'\"") from error


def _convert(name: str, value: object, hint: object) -> object:
    """`value` as one of the types that `hint` allows, as it stands where it already is one."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for member in members:
        if type(value) is member or (member is str and isinstance(value, str)):
            return value
    for member in members:
        convert = _CONVERTERS.get(typing.get_origin(member) or member)
        if convert is None:
            return value  # any other type is the dataclass's own business
        try:
            return convert(value, member)
        except (TypeError, ValueError, OverflowError):
            continue
    allowed = " or ".join(_describe(member) for member in members)
    quote = f"; quote it: {name}=\"'...'\"" if str in members else ""
    raise OptionError(f"{name} must be {allowed}, got {value!r}{quote}")


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if _CONVERTERS[origin or hint] is _to_sequence:
        entries = [_describe(argument) for argument in typing.get_args(hint) if argument in _WORDS]
        return f"a list, each entry {entries[0]}" if len(entries) == 1 else "a list, for example [1, 2]"
    return _WORDS[hint]


def _to_int(value: Any, hint: object) -> int:
    if isinstance(value, bool):
        raise TypeError
    return int(value) if isinstance(value, str) else operator.index(value)


def _to_float(value: Any, hint: object) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _to_bool(value: object, hint: object) -> bool:
    if not isinstance(value, str) or value.casefold() not in _TRUTH:
        raise TypeError
    return _TRUTH[value.casefold()]


def _to_sequence(value: object, hint: object) -> list | tuple:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise TypeError
    kind = list if list in (hint, typing.get_origin(hint)) else tuple
    arguments = [argument for argument in typing.get_args(hint) if argument is not ...]
    if len(arguments) == 1:
        value = [_convert("entry", entry, arguments[0]) for entry in value]
    return kind(value)


def _to_choice(value: object, hint: object) -> object:
    choices = typing.get_args(hint)
    if value not in choices:
        raise ValueError
    return value


def _refuse(value: object, hint: object) -> object:
    raise TypeError


_CONVERTERS = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _refuse,  # 1.10 is no longer what was typed once it has been read as a number
    type(None): _refuse,
    Sequence: _to_sequence,
    list: _to_sequence,
    tuple: _to_sequence,
    typing.Literal: _to_choice,
}
