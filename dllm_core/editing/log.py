"""What was edited, step by step, in terms of the text: it can be replayed and undone without the model.

A log is a file of JSON lines. The first says what was edited, each further one what a step did: its edits, and hunks,
the characters that went and came. Offsets of a step count in the text before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from dllm_core.errors import DataError

FORMAT, VERSION = "dllm-edit-log", 1


class Hunk(NamedTuple):
    """At `offset`, in characters, `removed` gave way to `inserted`."""

    offset: int
    removed: str
    inserted: str


@dataclass(frozen=True)
class Edit:
    """One edit of a token.

    Args:
        kind: ``"insert"``, ``"delete"`` or ``"substitute"``.
        line: from 1, in the text before the step.
        old, new: texts of the token that went and of the one that came; empty where there is none.
        probability: how sure the model was.
        time: of the flow, from 0 (draft) to 1.
    """

    kind: str
    line: int
    old: str
    new: str
    probability: float
    time: float


@dataclass(frozen=True)
class LogStep:
    """The edits of one step, and what they did to the text."""

    step: int
    edits: list[Edit]
    hunks: list[Hunk]


@dataclass
class EditLog:
    """The log of one text.

    Args:
        before, after: SHA-256 of the text in UTF-8, as hexadecimal digits; ``after`` is empty while it is edited.
        about: model, sampler, options.
        steps: those in which something happened.
    """

    before: str
    after: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    steps: list[LogStep] = field(default_factory=list)

    @property
    def edits(self) -> list[Edit]:
        """All edits, in order."""
        return [edit for step in self.steps for edit in step.edits]


def digest(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def replay(log: EditLog, text: str) -> str:
    """The edited text, from the one that the log began with.

    Raises:
        DataError: the log belongs to another text.
    """
    _check(log.before, text, "was written for")
    for step in log.steps:
        text = _applied(text, step.hunks)
    return text


def undo(log: EditLog, text: str) -> str:
    """The text that the log began with, from the edited one.

    Raises:
        DataError: the log ended with another text.
    """
    _check(log.after, text, "ended with")
    for step in reversed(log.steps):
        moved, back = 0, []
        for hunk in step.hunks:
            back.append(Hunk(hunk.offset + moved, hunk.inserted, hunk.removed))
            moved += len(hunk.inserted) - len(hunk.removed)
        text = _applied(text, back)
    return text


def write_log(log: EditLog, file: IO[bytes]) -> None:
    """Write a log as JSON lines."""
    head = {"format": FORMAT, "version": VERSION, "before": log.before, "after": log.after, "about": log.about}
    for line in (head, *(asdict(step) for step in log.steps)):
        file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())


def read_log(path: Path) -> EditLog:
    """A log from its file.

    Raises:
        DataError: no such file, or no log, or one of a later version.
    """
    try:
        head, *steps = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give a log that dllm edit --log wrote") from error
    except ValueError as error:
        raise DataError(f"{path} is no log of dllm edit ({error}); give one that --log wrote") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("version") != VERSION:
        raise DataError(f"{path} is no log of dllm edit of version {VERSION}; give one that --log wrote")
    return EditLog(head["before"], head["after"], head["about"], [_step(each) for each in steps])


def _step(values: Mapping[str, Any]) -> LogStep:
    hunks = [Hunk(*each) for each in values["hunks"]]
    return LogStep(values["step"], [Edit(**each) for each in values["edits"]], hunks)


def _applied(text: str, hunks: Iterable[Hunk]) -> str:
    parts, place = [], 0
    for hunk in hunks:
        if text[hunk.offset : hunk.offset + len(hunk.removed)] != hunk.removed:
            raise DataError(f"the log does not belong to this text: {hunk.removed!r} does not stand at {hunk.offset}")
        parts += [text[place : hunk.offset], hunk.inserted]
        place = hunk.offset + len(hunk.removed)
    return "".join([*parts, text[place:]])


def _check(wanted: str, text: str, verb: str) -> None:
    if digest(text) != wanted:
        raise DataError(f"this is not the text that the log {verb} (its SHA-256 differs); give that file")


def hunks_between(before: Sequence[tuple[int, str]], after: Sequence[tuple[int, str]], offset: int) -> list[Hunk]:
    """What changed between two canvases, as few characters as the pieces allow.

    Args:
        before, after: key and text of each piece; a key that is in both with the same text has stayed.
        offset: of the first piece.
    """
    stayed = dict(before)
    anchors = [place for place, (key, text) in enumerate(after) if stayed.get(key) == text]
    hunks, old, new = [], 0, 0
    for anchor in [*anchors, len(after)]:
        key = after[anchor][0] if anchor < len(after) else None
        removed = []
        while old < len(before) and before[old][0] != key:
            removed.append(before[old][1])
            old += 1
        inserted = "".join(text for _, text in after[new:anchor])
        gone = "".join(removed)
        if gone != inserted:
            hunks.append(Hunk(offset, gone, inserted))
        offset += len(gone) + (len(after[anchor][1]) if key is not None else 0)
        old, new = old + 1, anchor + 1
    return hunks
