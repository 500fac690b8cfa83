"""The formats of data sets: which columns each wants, and how a row becomes the turns of a chat.

A column may be a path into nested values (``instances.0.output``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dllm_core.config import one_of
from dllm_core.errors import DataError

Turn = dict[str, str]

AUTO = "auto"
# Format -> its fields -> the names that their columns go by. In the order in which they are tried.
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "tokens": {"input_ids": ("input_ids",), "labels": ("labels",)},
    "chat": {"messages": ("messages", "conversations", "conversation")},
    "edits": {
        "before": ("before", "draft", "old_contents"),
        "after": ("after", "new_contents"),
        "instruction": ("instruction",),
    },
    "alpaca": {"instruction": ("instruction",), "input": ("input",), "output": ("output",), "system": ("system",)},
    "prompt": {
        "prompt": ("prompt", "question", "query", "instruction"),
        "response": ("response", "completion", "answer"),
        "system": ("system",),
    },
    "text": {"text": ("text", "content", "Text")},
}
FORMATS = tuple(COLUMNS)
OPTIONAL = {  # format -> the fields that a data set may lack
    "tokens": {"labels"},
    "edits": {"instruction"},
    "alpaca": {"input", "system"},
    "prompt": {"system"},
}
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}


@dataclass(frozen=True)
class Layout:
    """The format of a data set, and the column of each of its fields; a field that is not there is left out."""

    format: str
    columns: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.format} ({', '.join(self.columns.values())})"


def find_layout(found: Sequence[str], *, format: str, mapping: Mapping[str, str], what: str) -> Layout:
    """The format and columns of a data set.

    Args:
        found: names of its columns.
        format: one of `FORMATS`, or ``auto``: the first whose columns are there, and which has all fields of `mapping`.
        mapping: columns by field that the user named.
        what: the data set, for messages.

    Raises:
        OptionError: no such format.
        DataError: columns are missing; the message names those found and those that each format wants.
    """
    one_of("format", format, (AUTO, *FORMATS))
    candidates = [name for name in FORMATS if format in (AUTO, name)]
    for name, column in mapping.items():
        if column not in found and column.partition(".")[0] not in found:
            raise DataError(f"{what} has no column {column!r} for {name}; its columns are {', '.join(found)}")
    for name in candidates:
        columns = _columns(name, found, mapping)
        if columns is not None and set(mapping) <= set(COLUMNS[name]):
            return Layout(name, columns)
    named = f" with {', '.join(mapping)} named" if mapping else ""
    asked = ("fit no format" if format == AUTO else f"do not fit format {format}") + named
    wanted = "; ".join(f"{name}: {_wants(name)}" for name in candidates)
    raise DataError(
        f"{what}: its columns {', '.join(found) or '(none)'} {asked}. Wanted are {wanted}. Name columns with options, "
        "as in [prompt:COLUMN,response:COLUMN]"
    )


def _columns(format: str, found: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str] | None:
    """The column of each field; None: one that must be there is missing."""
    columns = {}
    for name, aliases in COLUMNS[format].items():
        column = mapping.get(name) or next((alias for alias in aliases if alias in found), None)
        if column is not None:
            columns[name] = column
        elif name not in OPTIONAL.get(format, ()):
            return None
    return columns


def _wants(format: str) -> str:
    fields = COLUMNS[format].items()
    optional = OPTIONAL.get(format, ())
    return ", ".join("|".join(aliases) + (" (optional)" if name in optional else "") for name, aliases in fields)


def value_at(row: Mapping[str, object], column: str) -> object:
    """The value of a column or of a path into one; None where there is nothing."""
    if column in row:
        return row[column]
    value: object = row
    for step in column.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, Sequence) and not isinstance(value, str) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def turns_of(row: Mapping[str, object], layout: Layout) -> list[Turn] | None:
    """The turns that a row of format chat, alpaca or prompt holds; None: it does not hold what the format says.

    Roles are system, user, assistant, or the data's own.
    """
    values = {name: value_at(row, column) for name, column in layout.columns.items()}
    if layout.format == "chat":
        messages = values["messages"]
        turns = [_turn(message) for message in messages] if isinstance(messages, (list, tuple)) else [None]
        return None if None in turns else turns
    asked, answered = ("instruction", "output") if layout.format == "alpaca" else ("prompt", "response")
    question, answer = values[asked], values[answered]
    if not isinstance(question, str) or not isinstance(answer, str):
        return None
    if _is_filled(values.get("input")):
        question = f"{question}\n\n{values['input']}"
    first = [{"role": "system", "content": values["system"]}] if _is_filled(values.get("system")) else []
    return [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def instruction_turns(instruction: str, text: str) -> list[Turn]:
    """How a model is told what to do with a text; its answer is the text as it is to be."""
    return [{"role": "user", "content": f"{instruction}\n\n{text}"}]


def _is_filled(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _turn(message: object) -> Turn | None:
    """One message as role and content, from ``role``/``content`` or ``from``/``value``."""
    if not isinstance(message, Mapping):
        return None
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        return None
    return {"role": ROLES.get(role, role), "content": content}
