"""How far two texts are apart, in tokens."""

from __future__ import annotations

from collections.abc import Sequence


def edit_distance(before: Sequence[int], after: Sequence[int]) -> int:
    """The least number of insertions, deletions and substitutions (Levenshtein). Time grows with the length of what
    differs times the distance: what both begin and end with is left out, and so is what is far from the diagonal."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    left, right = before[start : len(before) - end], after[start : len(after) - end]
    most = max(4, abs(len(left) - len(right)))
    while (found := _within(left, right, most)) is None:
        most *= 2
    return found


def _within(left: Sequence[int], right: Sequence[int], most: int) -> int | None:
    """The distance, None where it is above `most`: no path that short is further from the diagonal.

    Source: Ukkonen, "Algorithms for approximate string matching", Information and Control 64 (1985).
    """
    far = most + 1
    row = [min(place, far) for place in range(len(right) + 1)]
    for count, token in enumerate(left, 1):
        first, last = max(1, count - most), min(len(right), count + most)
        diagonal, row[first - 1] = row[first - 1], min(count, far) if first == 1 else far
        for place in range(first, last + 1):
            cost = diagonal + (token != right[place - 1])
            diagonal, row[place] = row[place], min(cost, row[place] + 1, row[place - 1] + 1)
    return row[-1] if row[-1] <= most else None
