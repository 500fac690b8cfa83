"""The operation log: replayed it gives the result, undone the draft, and it refuses a text that is not its own."""

from __future__ import annotations

import json

import pytest
from dllm_editflow.operations import Operation, replay, undo
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_core.errors import DataError


def edit(kind: str, position: int, *, old: int | None = None, new: int | None = None, step: int = 0) -> Operation:
    return Operation(kind, position, position, old, new, step, 0.5, 0.9)


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[int], list[Operation], list[int]]:
    """A draft, a log of several steps, and the result that a naive loop over tokens makes of them."""
    draft = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    canvas, log = list(draft), []
    for step in range(draw(st.integers(0, 4))):
        after = []
        for position, token in enumerate(canvas):
            change = draw(st.sampled_from(["keep", "keep", "substitute", "delete"])) if position else "keep"
            if change == "substitute":
                log.append(edit(change, position, old=token, new=draw(st.integers(0, 9)), step=step))
                after.append(log[-1].new)
            elif change == "delete":
                log.append(edit(change, position, old=token, step=step))
            else:
                after.append(token)
            if draw(st.integers(0, 3)) == 0:
                log.append(edit("insert", position, new=draw(st.integers(0, 9)), step=step))
                after.append(log[-1].new)
        canvas = after
    return draft, log, canvas


@settings(max_examples=200, deadline=None)
@given(logs())
def test_replay_and_undo_are_each_others_inverse(case: tuple[list[int], list[Operation], list[int]]) -> None:
    draft, log, result = case
    assert replay(log, draft) == result
    assert undo(log, result) == draft


@settings(max_examples=50, deadline=None)
@given(logs())
def test_a_log_comes_back_from_json(case: tuple[list[int], list[Operation], list[int]]) -> None:
    log = case[1]
    assert [Operation.from_dict(json.loads(json.dumps(each.as_dict()))) for each in log] == log


def test_operations_of_a_step_happen_at_once() -> None:
    log = [edit("delete", 1, old=5), edit("insert", 1, new=6), edit("substitute", 2, old=7, new=8)]
    assert replay(log, [0, 5, 7, 9]) == [0, 6, 8, 9]
    assert undo(log, [0, 6, 8, 9]) == [0, 5, 7, 9]


def test_a_last_step_is_undone_alone() -> None:
    log = [edit("delete", 1, old=5), edit("insert", 0, new=6, step=1)]
    assert undo(log[1:], replay(log, [0, 5])) == replay(log[:1], [0, 5]) == [0]


@pytest.mark.parametrize(
    ("log", "tokens", "named"),
    [
        ([edit("delete", 1, old=5)], [0, 6], "token 6 stands there"),
        ([edit("substitute", 3, old=5, new=1)], [0, 5], "has 2 tokens"),
        ([edit("insert", 9, new=1)], [0, 5], "has 2 tokens"),
    ],
)
def test_a_log_of_another_text_is_refused(log: list[Operation], tokens: list[int], named: str) -> None:
    with pytest.raises(DataError, match=named):
        replay(log, tokens)


@pytest.mark.parametrize("tokens", [[0], [0, 1], [0, 6]])
def test_undo_refuses_a_text_that_the_log_did_not_make(tokens: list[int]) -> None:
    with pytest.raises(DataError, match="does not belong"):
        undo([edit("substitute", 1, old=5, new=2), edit("insert", 1, new=3)], tokens)


def test_fields_of_an_operation_are_checked() -> None:
    values = edit("delete", 1, old=5).as_dict()
    with pytest.raises(DataError, match="'move'"):
        Operation.from_dict(values | {"kind": "move"})
    with pytest.raises(DataError, match="has the fields kind"):
        Operation.from_dict({name: value for name, value in values.items() if name != "old"})
