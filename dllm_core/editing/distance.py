"""How far two texts are apart, in tokens."""

from __future__ import annotations

from collections.abc import Sequence


def edit_distance(before: Sequence[int], after: Sequence[int]) -> int:
    """The least number of insertions, deletions and substitutions (Levenshtein). Time grows with what differs only:
    what both begin and end with is left out."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    left, right = before[start : len(before) - end], after[start : len(after) - end]
    row = list(range(len(right) + 1))
    for count, token in enumerate(left, 1):
        diagonal, row[0] = row[0], count
        for place, other in enumerate(right, 1):
            diagonal, row[place] = row[place], min(diagonal + (token != other), row[place] + 1, row[place - 1] + 1)
    return row[-1]
