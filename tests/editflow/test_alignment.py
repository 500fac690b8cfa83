"""Alignments, and what is built from their columns: checked against slow code of its own and by round trips."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from dllm_editflow.alignment import MODES, align, distance
from dllm_editflow.columns import editable_rows, remaining, show
from dllm_editflow.dynamic import needleman_wunsch
from dllm_editflow.kinds import BLANK, COLUMN_PADDING, DELETE, INSERT, SUBSTITUTE
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_core.errors import DataError, OptionError

TOKENS = st.lists(st.integers(0, 4), max_size=9)


def tokens_of(column: list[int]) -> list[int]:
    return [token for token in column if token >= 0]


@pytest.mark.parametrize("mode", MODES)
@given(source=TOKENS, target=TOKENS, seed=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_an_alignment_holds_both_texts_and_no_empty_column(mode, source, target, seed):
    aligned = align(source, target, mode, torch.Generator().manual_seed(seed))
    assert tokens_of(aligned.source) == source
    assert tokens_of(aligned.target) == target
    columns = list(zip(*aligned, strict=True))
    assert (BLANK, BLANK) not in columns
    if mode in ("optimal", "optimal-shuffled", "published"):
        assert (
            sum(left != right for left, right in columns) == edit_distance(source, target) == distance(source, target)
        )


def edit_distance(source: list[int], target: list[int]) -> int:
    if not source or not target:
        return len(source) + len(target)
    row = list(range(len(target) + 1))
    for i, token in enumerate(source, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(target, 1):
            before, row[j] = row[j], min(before + (token != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def test_the_published_ties_are_kept():
    """Figures of the published aligner: diagonal before deletion before insertion, chosen from the end."""
    cases = [
        ([9, 9, 9, 9], [1, 2], ([9, 9, 9, 9], [-1, -1, 1, 2])),
        ([1, 2], [9, 9, 9, 9], ([-1, -1, 1, 2], [9, 9, 9, 9])),
        ([1, 2, 3], [2, 3, 4], ([1, 2, 3, -1], [-1, 2, 3, 4])),
    ]
    for source, target, want in cases:
        assert needleman_wunsch(source, target) == want
    assert needleman_wunsch([1], [2], substitution=3, gap=1) == ([-1, 1], [2, -1])


def test_shuffled_ties_are_even():
    """Two blanks among four deleted tokens stand at each of the six places equally often."""
    generator = torch.Generator().manual_seed(0)
    found = Counter(tuple(align([9] * 4, [1, 2], "optimal-shuffled", generator).target) for _ in range(3000))
    assert len(found) == 6
    # 500 each; four standard deviations of a binomial are 82
    assert all(abs(count - 500) < 82 for count in found.values())


def test_random_alignments_take_half_of_the_source_for_substitutions():
    aligned = align([7] * 6, [1, 2, 3, 4, 5], "random", torch.Generator().manual_seed(0))
    kinds = Counter((left >= 0, right >= 0) for left, right in zip(*aligned, strict=True))
    assert kinds == {(True, True): 3, (True, False): 3, (False, True): 2}
    other = align([7] * 6, [1, 2, 3, 4, 5], "random", torch.Generator().manual_seed(1))
    assert aligned != other


@pytest.mark.parametrize("bad", [torch.tensor([1, 2]), np.array([1, 2]), (1, 2), [torch.tensor(1)], [1.0], "ab"])
def test_what_rapidfuzz_would_misread_is_refused(bad):
    with pytest.raises(DataError, match="list of token ids"):
        align(bad, [1, 2])
    with pytest.raises(DataError, match="target of an alignment"):
        distance([1, 2], bad)
    with pytest.raises(OptionError, match="optimal"):
        align([1], [2], "optimall")


def edits_one_by_one(now: list[int], target: list[int]) -> list[tuple[int, int, int]]:
    """(kind, token of the text at which, new token or -1), in the order of the columns, counted column by column."""
    edits, seen = [], 0
    for left, right in zip(now, target, strict=True):
        if left != right:
            kind = INSERT if left == BLANK else DELETE if right == BLANK else SUBSTITUTE
            edits.append((kind, seen - 1 if kind == INSERT else seen, right))
        seen += left >= 0
    return edits


def apply_edits(text: list[int], edits: list[tuple[int, int, int]]) -> list[int]:
    """The text after edits that all refer to its own positions."""
    behind = {place: [] for place in range(len(text))}
    now: dict[int, int | None] = dict(enumerate(text))
    for kind, place, token in edits:
        if kind == INSERT:
            behind[place].append(token)
        else:
            now[place] = None if kind == DELETE else token
    return [token for place in range(len(text)) for token in (now[place], *behind[place]) if token is not None]


PAIRS = st.lists(st.tuples(TOKENS, TOKENS, st.lists(st.booleans(), min_size=20, max_size=20)), min_size=1, max_size=4)


@given(pairs=PAIRS, seed=st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_the_remaining_edits_lead_to_the_target(pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = [align([0, *source], [0, *target], "random", generator) for source, target, _ in pairs]
    rows = [([0, *left], [0, *right]) for left, right in rows]  # a token in front that no edit touches
    width = max(len(left) for left, _ in rows)
    target = torch.tensor([[*right, *[COLUMN_PADDING] * (width - len(right))] for _, right in rows])
    source = torch.tensor([[*left, *[COLUMN_PADDING] * (width - len(left))] for left, _ in rows])
    turned = torch.tensor([(mask * 2)[:width] for *_, mask in pairs])
    columns = torch.where(turned, target, source)
    shown = show(columns, filler=99)
    left = remaining(columns, target, shown)
    for number, (now, goal) in enumerate(zip(columns.tolist(), target.tolist(), strict=True)):
        text = tokens_of(now)
        assert shown.input_ids[number].tolist() == text + [99] * (shown.input_ids.shape[1] - len(text))
        assert shown.attention_mask[number].tolist() == [place < len(text) for place in range(shown.input_ids.shape[1])]
        edits = edits_one_by_one(now, goal)
        assert apply_edits(text, edits) == tokens_of(goal)
        assert dense(left, number) == sorted(edits, key=lambda edit: edit[:2])


def dense(left, number: int) -> list[tuple[int, int, int]]:
    """The edits of one text as the tensors have them."""
    rows = left.substitutions.nonzero()[:, 0] == number
    places = left.substitutions[number].nonzero()[:, 0].tolist()
    edits = [(SUBSTITUTE, *pair) for pair in zip(places, left.substitution_targets[rows].tolist(), strict=True)]
    for place, count in enumerate(left.counts[number, :, DELETE].tolist()):
        edits += [(DELETE, place, -1)] * int(count)
    own = left.insertions[:, 0] == number
    inserted = zip(left.insertions[own, 1].tolist(), left.insertion_targets[own].tolist(), strict=True)
    edits += [(INSERT, *pair) for pair in inserted]
    counts = [sum(kind == each[0] for each in edits) for kind in (SUBSTITUTE, DELETE, INSERT)]
    assert left.counts[number].sum(0).tolist() == counts
    return sorted(edits, key=lambda edit: edit[:2])


def test_weights_count_at_the_token_of_their_column():
    columns, target = torch.tensor([[5, -1, -1, 6, 7]]), torch.tensor([[5, 1, 2, -1, 8]])
    weights = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    left = remaining(columns, target, show(columns, 0), weights)
    assert left.counts[0].tolist() == [[0, 0, 5], [0, 4, 0], [5, 0, 0]]
    assert left.substitution_weights.tolist() == [5]
    assert left.insertion_weights.tolist() == [2, 3]


def test_a_locked_span_is_open_only_where_an_editable_one_follows():
    """[0 1 | 2 3 | 4 5]: the middle may change; something may be put behind 1, 2 and 3, not behind 0, 4 or 5."""
    columns = torch.tensor([[0, 1, 2, 3, 4, 5]])
    editable = torch.tensor([[False, False, True, True, False, False]])
    tokens, gaps = editable_rows(editable, columns, show(columns, 9))
    assert tokens.tolist() == [[False, False, True, True, False, False]]
    assert gaps.tolist() == [[False, True, True, True, False, False]]


def test_an_empty_span_between_locked_ones_can_be_filled():
    columns = torch.tensor([[0, -1, -1, 4]])
    editable = torch.tensor([[False, True, True, False]])
    tokens, gaps = editable_rows(editable, columns, show(columns, 9))
    assert tokens.tolist() == [[False, False]]
    assert gaps.tolist() == [[True, False]]
