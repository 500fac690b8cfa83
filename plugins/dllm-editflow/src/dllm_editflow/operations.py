"""The log of a run: what was inserted, deleted and substituted, in a form that can be replayed, undone and kept.

Operations of one step happen at once, so their positions all count in the canvas before that step. A row's log is in
order: by step, then by position, and where one token is changed and another put behind it, the change first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby, takewhile
from operator import attrgetter

from dllm_core.errors import DataError
from dllm_editflow.kinds import KINDS

INSERTED = -1  # the source of a token that the draft did not have


@dataclass(frozen=True)
class Operation:
    """One edit.

    Args:
        kind: ``"substitute"``, ``"delete"`` or ``"insert"``.
        position: of the token that it happens to, in the canvas before the step; an insertion stands behind it.
        source: where that token stood in the draft, -1 where the draft did not have it. A substituted token keeps its
            place in the draft.
        old: id of the token that goes; None for an insertion.
        new: id of the token that comes; None for a deletion.
        step: number of the step, from 0.
        time: kappa of the flow at that step, from 0 (draft) to 1 (done).
        probability: how sure the model was: its rate r-hat, at most 1, times, where a token comes, the probability of
            that token among those that could come.
    """

    kind: str
    position: int
    source: int
    old: int | None
    new: int | None
    step: int
    time: float
    probability: float

    def as_dict(self) -> dict[str, object]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Operation:
        """The operation of `as_dict`.

        Raises:
            DataError: a field is missing or unknown, or there is no such kind.
        """
        names = [field.name for field in fields(cls)]
        if set(values) != set(names):
            raise DataError(f"an operation has the fields {', '.join(names)}; got {', '.join(map(str, values))}")
        if values["kind"] not in KINDS:
            raise DataError(f"an operation's kind is {', '.join(KINDS)}; got {values['kind']!r}")
        return cls(**values)


def edits_of_step(log: Sequence[Operation], step: int) -> list[Operation]:
    """What a row's log has of its last step, if that is the one."""
    return list(takewhile(lambda operation: operation.step == step, reversed(log)))[::-1]


def replay(operations: Iterable[Operation], tokens: Sequence[int]) -> list[int]:
    """What a row's operations make of the canvas that they began with.

    Raises:
        DataError: they do not belong to these tokens.
    """
    canvas = list(tokens)
    for step in _steps(operations):
        canvas = list(_forward(step, canvas))
    return canvas


def undo(operations: Iterable[Operation], tokens: Sequence[int]) -> list[int]:
    """The canvas that a row's operations began with, from what they made of it.

    Undoing a log's last steps alone gives the canvas before those.

    Raises:
        DataError: they do not belong to these tokens.
    """
    canvas = list(tokens)
    for step in reversed(list(_steps(operations))):
        canvas = _backward(step, canvas)
    return canvas


def _steps(operations: Iterable[Operation]) -> Iterator[list[Operation]]:
    for _, step in groupby(operations, attrgetter("step")):
        yield list(step)


def _by_position(step: Sequence[Operation]) -> dict[int, list[Operation]]:
    return {at: list(here) for at, here in groupby(step, attrgetter("position"))}


def _forward(step: Sequence[Operation], canvas: Sequence[int]) -> Iterator[int]:
    here = _by_position(step)
    if max(here) >= len(canvas):
        raise _foreign(step[-1], f"the canvas has {len(canvas)} tokens")
    for position, token in enumerate(canvas):
        stays = True
        for operation in here.get(position, ()):
            if operation.old is not None and operation.old != token:
                raise _foreign(operation, f"token {token} stands there")
            stays &= operation.kind == "insert"
            if operation.kind == "substitute":
                yield operation.new
        if stays:
            yield token
        yield from (operation.new for operation in here.get(position, ()) if operation.kind == "insert")


def _backward(step: Sequence[Operation], canvas: Sequence[int]) -> list[int]:
    here, left, before = _by_position(step), list(reversed(canvas)), []
    while left or len(before) <= max(here):
        now = here.get(len(before), ())
        change = next((operation for operation in now if operation.kind != "insert"), None)
        if change is None and not left:
            raise _foreign(step[-1], f"the canvas has {len(canvas)} tokens")
        if change is not None and change.new is not None:
            _take(left, change)
        before.append(left.pop() if change is None else change.old)
        for operation in now:
            if operation.kind == "insert":
                _take(left, operation)
    return before


def _take(left: list[int], operation: Operation) -> None:
    token = left.pop() if left else None
    if token != operation.new:
        raise _foreign(operation, f"token {token} stands where it wrote {operation.new}")


def _foreign(operation: Operation, why: str) -> DataError:
    return DataError(
        f"the log does not belong to this text: step {operation.step} would {operation.kind} at {operation.position}, "
        f"but {why}; give the text that the log was written for"
    )
