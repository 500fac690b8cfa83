"""Vectorised rules against loops that follow the papers, on confidences with ties; and what the theorems say.

Shapes: B rows, M open positions.
"""

from __future__ import annotations

import torch
from dllm_fastdllm import Factor, Frechet, Threshold
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_core.samplers import Proposal

# A coarse grid, so that ties and exact equality with the bounds happen; multiples of 1/64 are exact in float32.
CONFIDENCE = st.integers(0, 64).map(lambda n: n / 64)
ROWS = st.lists(st.tuples(CONFIDENCE, st.booleans()), min_size=1, max_size=9)
OPTION = st.integers(0, 64).map(lambda n: n / 64)


def ranked(row: list[tuple[float, bool]]) -> list[tuple[float, int]]:
    """(confidence, position) of the masked positions, the surest first, ties from the left."""
    return sorted(((c, i) for i, (c, masked) in enumerate(row) if masked), key=lambda pair: (-pair[0], pair[1]))


def prefix(row: list[tuple[float, bool]], count: int) -> set[int]:
    return {position for _, position in ranked(row)[:count]}


def loop_threshold(row, threshold):
    chosen = {i for i, (c, masked) in enumerate(row) if masked and c >= threshold}
    return chosen or prefix(row, 1)


def loop_factor(row, factor):
    counts = [n for n, (c, _) in enumerate(ranked(row), start=1) if c >= 1 - factor / (n + 1)]
    return prefix(row, max(counts, default=1))


def loop_frechet(row, delta):
    order, total, count = ranked(row), 0.0, 1
    for n, (c, _) in enumerate(order, start=1):
        total += c
        if total - (n - 1) - (1 - c) > delta:
            count = n
    return prefix(row, count)


def select(rule, row: list[tuple[float, bool]]) -> set[int]:
    confidence = torch.tensor([[c for c, _ in row]])
    masked = torch.tensor([[m for _, m in row]])
    proposal = Proposal(torch.zeros_like(confidence, dtype=torch.long), confidence, confidence)
    chosen = rule.select(proposal, masked, torch.ones(1, dtype=torch.long))
    return set(chosen[0].nonzero().flatten().tolist())


@settings(max_examples=300, deadline=None)
@given(row=ROWS, option=OPTION)
def test_each_rule_selects_what_its_loop_selects(row, option):
    assert select(Threshold(threshold=option), row) == loop_threshold(row, option)
    assert select(Factor(factor=2 * option), row) == loop_factor(row, 2 * option)
    assert select(Frechet(delta=option), row) == loop_frechet(row, option)


@settings(max_examples=200, deadline=None)
@given(confidence=CONFIDENCE, count=st.integers(1, 9), delta=OPTION)
def test_frechet_is_factor_where_all_are_equally_sure(confidence, count, delta):
    row = [(confidence, True)] * count
    doubt = 1 - confidence
    on_the_bound = any((n + 1) * doubt == 1 - delta for n in range(1, count + 1))  # > in one paper, >= in the other
    if not on_the_bound:
        assert select(Frechet(delta=delta), row) == select(Factor(factor=1 - delta), row)


@settings(max_examples=200, deadline=None)
@given(row=ROWS, delta=OPTION)
def test_frechet_never_commits_fewer_than_factor(row, delta):
    # Strictly inside the factor's bound, because at it one rule says > and the other >=.
    assert select(Factor(factor=max(0.0, 1 - delta - 1e-6)), row) <= select(Frechet(delta=delta), row)


def test_the_last_position_is_not_committed_when_it_fails_the_bound():
    # Published forks commit one position too many at the end of a block: there 0.1 would go in.
    row = [(0.99, True), (0.98, True), (0.1, True)]
    assert select(Factor(factor=1.0), row) == {0, 1}
    assert select(Factor(factor=0.0), row) == {0}


def test_rows_do_not_see_each_other_and_filler_is_left_alone():
    confidence = torch.tensor([[0.2, 0.1, 0.99], [0.95, 0.97, 0.99]])
    masked = torch.tensor([[True, True, False], [True, True, True]])
    proposal = Proposal(torch.zeros(2, 3, dtype=torch.long), confidence, confidence)
    quota = torch.ones(2, dtype=torch.long)
    for rule in (Threshold(threshold=0.9), Factor(factor=1.0), Frechet(delta=0.25)):
        assert rule.select(proposal, masked, quota).tolist() == [[True, False, False], [True, True, True]]


def test_suppressed_confidence_still_makes_progress():
    row = [(float("-inf"), True), (float("-inf"), True), (0.9, False)]
    for rule in (Threshold(), Factor(), Frechet()):
        assert select(rule, row) == {0}
