"""The plain dynamic programme (Needleman and Wunsch, 1970), with the ties of the published code; for comparison.

Quadratic in Python: thousands of times slower than `dllm_editflow.alignment`. It is here because published figures rest
on its ties, and as the yardstick of the benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence

from dllm_editflow.kinds import BLANK


def needleman_wunsch(
    source: Sequence[int], target: Sequence[int], *, substitution: int = 1, gap: int = 1
) -> tuple[list[int], list[int]]:
    """The cheapest alignment; of equally cheap ones that which, from the end, substitutes or keeps before it deletes,
    and deletes before it inserts.

    Args:
        substitution, gap: costs; keeping a token costs nothing.

    Source: ZHZisZZ/dllm at ca17675, dllm/pipelines/editflow/trainer.py, align_with_blanks.
    """
    costs = _costs(source, target, substitution, gap)
    left, right = [], []
    i, j = len(source), len(target)
    while i or j:
        here = costs[i][j]
        step = 0 if i and j and source[i - 1] == target[j - 1] else substitution
        if i and j and here == costs[i - 1][j - 1] + step:
            i, j = i - 1, j - 1
            left.append(source[i])
            right.append(target[j])
        elif i and here == costs[i - 1][j] + gap:
            i -= 1
            left.append(source[i])
            right.append(BLANK)
        else:
            j -= 1
            left.append(BLANK)
            right.append(target[j])
    return left[::-1], right[::-1]


def _costs(source: Sequence[int], target: Sequence[int], substitution: int, gap: int) -> list[list[int]]:
    """The cost of every pair of prefixes."""
    costs = [[j * gap for j in range(len(target) + 1)]]
    for i, token in enumerate(source, 1):
        above, row = costs[-1], [i * gap]
        for j, other in enumerate(target, 1):
            diagonal = above[j - 1] + (0 if token == other else substitution)
            row.append(min(diagonal, above[j] + gap, row[-1] + gap))
        costs.append(row)
    return costs
