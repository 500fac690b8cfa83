"""Which edits fire, on rates that are written down."""

from __future__ import annotations

import torch
from dllm_editflow.apply import KEPT
from dllm_editflow.choosing import Chosen, Moment, keep_best, sure_enough, surest
from dllm_editflow.kinds import DELETE, SUBSTITUTE
from torch import Tensor


def given(*rows: list[tuple[float, float, float]]) -> tuple[Tensor, Moment]:
    """Rates (R, L, 3) of substituting, deleting and inserting, and a moment."""
    rates = torch.tensor(rows, dtype=torch.float64)
    zeros = torch.zeros(len(rows), dtype=torch.int64)
    return rates, Moment(zeros, zeros, zeros.double())


def test_every_edit_that_is_sure_enough_fires_on_its_own_rate():
    rates, moment = given(
        [(0.5, 0.1, 0.0), (0.4, 0.4, 0.49), (0.3, 0.6, 0.5), (0.0, 0.0, 2.0)],
        [(0.49, 0.49, 0.4), (0.0, 0.0, 0.0), (0.1, 0.1, 0.1), (0.0, 0.0, 0.0)],
    )
    chosen = sure_enough(rates, moment, 0.5)
    assert chosen.change.tolist() == [[SUBSTITUTE, KEPT, DELETE, KEPT], [KEPT] * 4]  # 0.4 and 0.4 are not 0.8
    assert chosen.insert.tolist() == [[False, False, True, True], [False] * 4]
    assert chosen.ended.tolist() == [False, True]


def test_the_surest_edit_is_one_and_ties_go_to_the_left():
    rates, moment = given(
        [(0.1, 0.2, 0.0), (0.6, 0.1, 0.7), (0.7, 0.0, 0.0)],
        [(0.2, 0.9, 0.1), (0.9, 0.1, 0.0), (0.0, 0.0, 0.0)],
        [(0.4, 0.1, 0.1), (0.2, 0.0, 0.0), (0.0, 0.0, 0.0)],
    )
    chosen = surest(rates, moment, 0.5)
    assert chosen.change.tolist() == [[KEPT] * 3, [DELETE, KEPT, KEPT], [KEPT] * 3]
    assert chosen.insert.tolist() == [[False, True, False], [False] * 3, [False] * 3]
    assert chosen.ended.tolist() == [False, False, True]


def fired(change: list[int], insert: list[bool]) -> Chosen:
    zeros = torch.zeros(1, dtype=torch.int64)
    return Chosen(torch.tensor([change]), torch.tensor([insert]), zeros, zeros.double(), zeros.bool())


def test_where_few_edits_are_left_the_surest_are_made():
    rates, _ = given([(0.2, 0.6, 0.3), (0.9, 0.0, 0.5), (0.0, 0.0, 0.4)])
    all_of_them = fired([DELETE, SUBSTITUTE, KEPT], [True, True, True])
    kept = keep_best(all_of_them, rates, torch.tensor([3]), insertions_only=False)
    assert kept.change.tolist() == [[DELETE, SUBSTITUTE, KEPT]]
    assert kept.insert.tolist() == [[False, True, False]]
    shorter = keep_best(all_of_them, rates, torch.tensor([2]), insertions_only=True)
    assert shorter.change.tolist() == all_of_them.change.tolist()
    assert shorter.insert.tolist() == [[False, True, True]]
