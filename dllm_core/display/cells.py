"""What the live view knows of a row between two frames: its tokens, and how long ago each was written.

A row is two lists of one length: token ids, and ages. Tokens that were just deleted stay among them for two frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from dllm_core.display.text import Age

if TYPE_CHECKING:
    from dllm_core.samplers.output import Edit

SURE, LIKELY = 0.9, 0.5  # the least confidence of the two upper shades
NEXT = {Age.DELETED: Age.LEAVING, Age.REVOKED: Age.SETTLED, Age.RECENT: Age.SETTLED}


@dataclass
class Cells:
    """A row as it is shown.

    Args:
        ids: token ids, those that were just deleted included.
        ages: of the same length.
    """

    ids: list[int]
    ages: list[int]

    @classmethod
    def at_first(cls, ids: Sequence[int], mask_id: int) -> Cells:
        """A row before the first step: masks, and what was given."""
        return cls(list(ids), [int(Age.SETTLED if token == mask_id else Age.GIVEN) for token in ids])

    @property
    def live(self) -> list[int]:
        """Where the tokens stand that are not deleted."""
        return [place for place, age in enumerate(self.ages) if age > Age.LEAVING]


def grown_older(cells: Cells) -> Cells:
    """The row one frame later."""
    kept = [(token, _older(age)) for token, age in zip(cells.ids, cells.ages, strict=True) if age != Age.LEAVING]
    return Cells([token for token, _ in kept], [age for _, age in kept])


def _older(age: int) -> int:
    if age in NEXT:
        return NEXT[age]
    return int(Age.RECENT) if age < Age.RECENT else age


def rewritten(cells: Cells, ids: Sequence[int], fresh: Sequence[bool], sure: Sequence[float], mask_id: int) -> Cells:
    """The row with other tokens in the same places; a canvas that grew or shrank does so at its end.

    Args:
        ids: the tokens now.
        fresh: where something was committed.
        sure: the confidence of what was committed, nan where that is not known.
    """
    known = len(cells.ids)
    ages = []
    for place, (now, is_fresh, surety) in enumerate(zip(ids, fresh, sure, strict=True)):
        was, age = (cells.ids[place], cells.ages[place]) if place < known else (mask_id, Age.SETTLED)
        ages.append(_age_now(was, now, age, is_fresh, surety, mask_id))
    return Cells(list(ids), ages)


def _age_now(was: int, now: int, age: int, is_fresh: bool, surety: float, mask_id: int) -> int:
    if now == mask_id:
        return int(age if was == mask_id else Age.REVOKED)
    if was not in (mask_id, now):
        return int(Age.REPLACED)
    return int(shade(surety)) if is_fresh else age


def shade(surety: float) -> Age:
    """The age of a token that was just committed, by its confidence; entropies, which are negative, as their power."""
    share = math.exp(surety) if surety < 0 else surety
    if math.isnan(share) or share >= SURE:
        return Age.FRESH
    return Age.LIKELY if share >= LIKELY else Age.UNSURE


def edited(cells: Cells, edits: Sequence[Edit], mask_id: int) -> Cells:
    """The row after the edits of one step, whose positions all count in the row before it."""
    here = {at: list(found) for at, found in groupby(edits, attrgetter("position"))}
    if not here:
        return cells
    after, position = list(_inserted(here.get(-1, ()))), -1
    for token, age in zip(cells.ids, cells.ages, strict=True):
        if age <= Age.LEAVING:
            after.append((token, age))
            continue
        position += 1
        after += _changed(token, age, here.get(position, ()), mask_id)
        after += _inserted(here.get(position, ()))
    return Cells([token for token, _ in after], [int(age) for _, age in after])


def _changed(token: int, age: int, edits: Sequence[Edit], mask_id: int) -> Iterator[tuple[int, int]]:
    change = next((edit for edit in edits if edit.kind != "insert"), None)
    if change is None:
        yield token, age
    elif change.kind == "substitute":
        yield change.new, _age_now(token, change.new, age, True, math.nan, mask_id)
    elif age != Age.INSERTED:  # what came and went between two frames was never seen
        yield token, Age.DELETED


def _inserted(edits: Sequence[Edit]) -> Iterator[tuple[int, int]]:
    return ((edit.new, Age.INSERTED) for edit in edits if edit.kind == "insert")


def growth(edits: Sequence[Edit]) -> int:
    """How much longer a row is after its edits; negative: shorter."""
    return sum((edit.kind == "insert") - (edit.kind == "delete") for edit in edits)
