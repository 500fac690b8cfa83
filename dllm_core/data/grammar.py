"""How data sets are named: ``NAME[key:value, ...]``, several joined by ``|`` or ``+``.

::

    tatsu-lab/alpaca[train:10_000,test:500]
    HuggingFaceTB/smoltalk[subset:all,test:5%] | "notes/c++.jsonl"[prompt:question,response:answer]

A value that is a whole number (``10_000``) or a share (``5%``) limits the rows of a split; a key that is an option
(`OPTIONS`) always takes its value as text, so a subset may be called ``2024``. A name or value with a quote or
one of ``| + [ ] , :`` in it is written in quotes, single or double; inside, a backslash stands before a quote.

Source: the grammar of ZHZisZZ/dllm, ``dllm/utils/utils.py`` ``parse_spec``, without its ambiguities.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dllm_core.errors import DataError, did_you_mean

SEPARATORS = "|+"
OPTIONS = {
    "subset": "the configuration of a hub data set",
    "name": "the same as subset",
    "revision": "branch, tag or commit of a hub data set",
    "format": "chat, edits, alpaca, prompt, text or tokens",
    "train_split": "the split to train on",
    "eval_split": "the split to evaluate on",
    "messages": "column of the chat turns",
    "prompt": "column of the prompts",
    "response": "column of the responses",
    "before": "column of the texts to be edited",
    "after": "column of the edited texts",
    "instruction": "column of the instructions",
    "input": "column of the inputs that go with the instructions",
    "output": "column of the answers to the instructions",
    "system": "column of the system messages",
    "text": "column of the plain text",
}
_COUNT = re.compile(r"[0-9][0-9_]*")
_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?)%")
_NEEDS_QUOTES = re.compile(r"""[|+\[\],:"'\\]|^\s|\s$|^$""")
_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<mark>[|+\[\],:])|(?P<bare>[^|+\[\],:"'\\]+))""", re.S
)
Token = tuple[str, str]  # kind (mark, bare, quoted) and text


@dataclass(frozen=True)
class Limit:
    """How many rows of a split are used: a count, or a percentage of all rows above 0, at most 100."""

    count: int | None = None
    percent: float | None = None

    def of(self, rows: int) -> int:
        """The number of rows of `rows`; a percentage is at least one row."""
        return min(rows, self.count if self.percent is None else max(1, round(self.percent * rows / 100)))

    def __str__(self) -> str:
        return str(self.count) if self.percent is None else f"{self.percent:f}".rstrip("0").rstrip(".") + "%"


@dataclass(frozen=True)
class DataPart:
    """One data set of a spec.

    Args:
        name: path, or hub id.
        limits: rows to use, by the name of the split.
        options: see `OPTIONS`; ``name`` has become ``subset``.
    """

    name: str
    limits: Mapping[str, Limit] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        entries = [f"{quote(key)}:{limit}" for key, limit in self.limits.items()]
        entries += [f"{key}:{quote(value)}" for key, value in self.options.items()]
        return quote(self.name) + (f"[{','.join(entries)}]" if entries else "")


def parse_spec(spec: str) -> tuple[DataPart, ...]:
    """The data sets that a spec names, in order.

    Raises:
        DataError: the spec does not follow the grammar; the message says what is allowed.
    """
    tokens = _tokens(spec)
    parts = [_part(tokens, spec)]
    while tokens:
        if tokens.pop(0) not in [("mark", mark) for mark in SEPARATORS]:
            raise _wrong(spec, "a name and its [options] are followed by | or + or nothing")
        parts.append(_part(tokens, spec))
    return tuple(parts)


def format_spec(parts: tuple[DataPart, ...]) -> str:
    """The spec that `parse_spec` reads as `parts`."""
    return " | ".join(map(str, parts))


def quote(text: str) -> str:
    """`text` as the grammar writes it: as it is where that is clear, in double quotes otherwise."""
    if not _NEEDS_QUOTES.search(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _tokens(spec: str) -> list[Token]:
    """Quotes, and the space around bare words, are gone."""
    tokens, place = [], 0
    while spec[place:].strip():
        match = _TOKEN.match(spec, place)
        if match is None:
            raise _wrong(
                spec, f"cannot be read from {spec[place:].strip()[:20]!r} on; close quotes, and quote backslashes"
            )
        kind, text = match.lastgroup, match[match.lastgroup]
        tokens.append((kind, re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.S) if kind == "quoted" else text.strip()))
        place = match.end()
    return tokens


def _part(tokens: list[Token], spec: str) -> DataPart:
    name = _word(tokens, spec, "a data set's name or path")
    limits: dict[str, Limit] = {}
    options: dict[str, str] = {}
    if tokens[:1] != [("mark", "[")]:
        return DataPart(name, limits, options)
    tokens.pop(0)
    while True:
        _entry(tokens, spec, limits, options)
        mark = tokens.pop(0) if tokens else None
        if mark == ("mark", "]"):
            return DataPart(name, limits, options)
        if mark != ("mark", ","):
            raise _wrong(spec, "entries in [ ] are key:value, separated by commas and closed by ]")


def _entry(tokens: list[Token], spec: str, limits: dict[str, Limit], options: dict[str, str]) -> None:
    """Read one ``key:value`` into the limits or the options."""
    key = _word(tokens, spec, "key:value in [ ]")
    if tokens[:1] != [("mark", ":")]:
        raise _wrong(spec, f"{key!r} in [ ] has no value; write {key}:value")
    tokens.pop(0)
    kind = tokens[0][0] if tokens else ""
    value = _word(tokens, spec, f"a value for {key!r}")
    target = "subset" if key == "name" else key
    if target in limits or target in options:
        raise _wrong(spec, f"{key!r} is given twice for one data set")
    if key in OPTIONS:
        options[target] = value
        return
    limit = _limit(value) if kind == "bare" else None
    if limit is None:
        raise _wrong(
            spec,
            f"{key}:{value} is neither rows of a split (train:10_000, test:5%) nor an option."
            f"{did_you_mean(key, OPTIONS)} The options are {', '.join(OPTIONS)}",
        )
    limits[key] = limit


def _limit(value: str) -> Limit | None:
    """A limit above nothing; None: the value is no limit."""
    if _COUNT.fullmatch(value) and int(value.replace("_", "")) > 0:
        return Limit(count=int(value.replace("_", "")))
    percent = _SHARE.fullmatch(value)
    if percent and 0 < float(percent[1]) <= 100:
        return Limit(percent=float(percent[1]))
    return None


def _word(tokens: list[Token], spec: str, wanted: str) -> str:
    if not tokens or tokens[0][0] == "mark" or not tokens[0][1]:
        got = repr(tokens[0][1]) if tokens else "the end"
        raise _wrong(spec, f"expected {wanted}, got {got}; write names with special characters in quotes")
    return tokens.pop(0)[1]


def _wrong(spec: str, why: str) -> DataError:
    return DataError(f"data set {spec!r}: {why}")
