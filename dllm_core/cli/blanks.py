"""Where the blanks of a text stand in its result: samplers that edit fill them with more tokens, or with fewer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple


class Stretch(NamedTuple):
    """Masks that follow each other: the positions (first, stop) that they had, and those of what filled them."""

    start: int
    stop: int
    filled_start: int
    filled_stop: int


def stretches(given: Sequence[int], filled: Sequence[int], mask_id: int) -> list[Stretch]:
    """The stretches of masks of a canvas, in order.

    Args:
        given: the canvas.
        filled: the result: what was given, in its order, with any number of tokens in place of each stretch.
    """
    if len(given) == len(filled) and all(was in (mask_id, now) for was, now in zip(given, filled, strict=True)):
        return [Stretch(start, stop, start, stop) for start, stop, masked in _runs(given, mask_id) if masked]
    found, at, opened = [], 0, None
    for start, stop, masked in _runs(given, mask_id):
        if masked:
            opened = (start, stop, at)
            continue
        kept = list(given[start:stop])
        if opened is not None:
            # Where it fits more than once, every way joins to the same tokens; what is last can only be at the end.
            first = len(filled) - len(kept) if stop == len(given) else _find(filled, kept, at)
            found.append(Stretch(*opened, first))
            at, opened = first, None
        at += len(kept)
    return found if opened is None else [*found, Stretch(*opened, len(filled))]


def span_of(found: Sequence[Stretch], start: int, stop: int) -> tuple[int, int]:
    """What filled the masks from `start` to `stop`, perhaps a part of a stretch; its last part has what is left."""
    stretch = next(one for one in found if one.start <= start < one.stop)
    first = min(stretch.filled_start + start - stretch.start, stretch.filled_stop)
    last = min(stretch.filled_start + stop - stretch.start, stretch.filled_stop)
    return first, stretch.filled_stop if stop == stretch.stop else last


def _runs(given: Sequence[int], mask_id: int) -> list[tuple[int, int, bool]]:
    """(start, stop, whether these are masks) of all that follows each other."""
    runs, start = [], 0
    for masked, group in groupby(token == mask_id for token in given):
        stop = start + sum(1 for _ in group)
        runs.append((start, stop, masked))
        start = stop
    return runs


def _find(tokens: Sequence[int], part: Sequence[int], start: int) -> int:
    """The first position from `start` on at which a part stands."""
    return next(at for at in range(start, len(tokens)) if list(tokens[at : at + len(part)]) == part)
