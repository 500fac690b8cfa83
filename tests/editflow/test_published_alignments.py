"""Published alignments and remaining edits: 300 pairs of texts, of unequal costs too."""

from __future__ import annotations

import json

import torch
from dllm_editflow.alignment import align
from dllm_editflow.columns import remaining, show
from dllm_editflow.dynamic import needleman_wunsch
from dllm_editflow.kinds import DELETE, INSERT, SUBSTITUTE

from tests.editflow.published import GOLDENS

CASES = json.loads((GOLDENS / "alignments.json").read_text())["cases"]
KINDS = {"SUB": SUBSTITUTE, "DEL": DELETE, "INS": INSERT}
PINNED = 0  # in front of every row, where the published code may have no token at all
Edit = tuple[int, int, int | None]  # kind, token of the row, new token


def test_every_alignment_is_the_published_one():
    assert len(CASES) == 300
    assert len({(case["sub_cost"], case["gap_cost"]) for case in CASES}) == 5
    for case in CASES:
        costs = {"substitution": case["sub_cost"], "gap": case["gap_cost"]}
        assert needleman_wunsch(case["x0"], case["x1"], **costs) == (case["z0"], case["z1"])


def test_what_rapidfuzz_finds_is_as_short():
    equal = [case for case in CASES if case["sub_cost"] == case["gap_cost"] == 1]
    assert len(equal) == 225
    for case in equal:
        aligned = align(case["x0"], case["x1"])
        edits, theirs = (
            sum(a != b for a, b in zip(*pair, strict=True)) for pair in (aligned, (case["z0"], case["z1"]))
        )
        assert edits == theirs


def test_what_is_shown_and_what_remains_are_published():
    """Of the source's columns, and of a mixture. Published insertions in front of the first token are at it."""
    for case in CASES:
        for name, text in (("z0", "x0"), ("zt", "xt")):
            now, shown = edits_of(case[name], case["z1"])
            assert shown == case[text]
            assert sorted(now, key=str) == sorted(map(published, case[f"edits_{name}"]), key=str)


def edits_of(columns: list[int], target: list[int]) -> tuple[list[Edit], list[int]]:
    """The edits as the published code numbers them, and the text."""
    now, goal = (torch.tensor([[PINNED, *row]]) for row in (columns, target))
    shown = show(now, filler=0)
    left = remaining(now, goal, shown)
    substituted = left.substitutions[0].nonzero()[:, 0].tolist()
    edits: list[Edit] = [
        (SUBSTITUTE, row - 1, new) for row, new in zip(substituted, left.substitution_targets.tolist(), strict=True)
    ]
    for row, count in enumerate(left.counts[0, :, DELETE].tolist()):
        edits += [(DELETE, row - 1, None)] * int(count)
    for row, new in zip(left.insertions[:, 1].tolist(), left.insertion_targets.tolist(), strict=True):
        edits.append((INSERT, max(row - 1, 0), new))
    return edits, shown.input_ids[0, 1:].tolist()


def published(edit: list) -> Edit:
    kind, place, new = edit
    return KINDS[kind], place, new
