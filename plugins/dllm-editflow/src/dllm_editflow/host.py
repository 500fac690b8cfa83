"""What a step leaves on the host: the log of each row, its length, and whether the row has ended."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from dllm_core.noise.counter import fold
from dllm_editflow.apply import Rows
from dllm_editflow.deciding import NONE, Decision
from dllm_editflow.kinds import DELETE, INSERT, KINDS
from dllm_editflow.operations import Operation
from dllm_editflow.options import EditFlowOptions
from dllm_editflow.state import EditState


def take_in(state: EditState, decision: Decision, options: EditFlowOptions) -> list[bool]:
    """Note a step's edits, in one question to the device. Returns which of the active rows nothing will happen to."""
    chosen = decision.chosen
    left = torch.zeros_like(chosen.clock) if chosen.left is None else chosen.left
    moments = torch.stack([chosen.at.double(), chosen.clock, chosen.ended.double(), left], 1)  # (R, 4)
    log, moments = _told(state, decision.log, moments)
    pairs = zip(state.active, moments, strict=True)
    times = [_go_on(state, row, int(at), clock, left) for row, (at, clock, _, left) in pairs]
    for kind, number, position, source, old, new, probability in sorted(log, key=_in_order):
        row = state.active[int(number)]
        tokens = (None if token == NONE else int(token) for token in (old, new))
        operation = Operation(
            KINDS[int(kind)], int(position), int(source), *tokens, state.index, times[int(number)], probability
        )
        state.operations[row].append(operation)
        state.made[row] += 1
        state.widths[row] += (kind == INSERT) - (kind == DELETE)
    return [bool(ended) for _, _, ended, _ in moments]


def rows_left(state: EditState, options: EditFlowOptions, ended: Sequence[bool]) -> list[int]:
    """The active rows that go on after a step."""
    most = len(state.plan) or options.max_passes
    left = [row for row, over in zip(state.active, ended, strict=True) if not over and state.at[row] < most]
    if options.max_edits is not None:
        left = [row for row in left if state.made[row] < options.max_edits]
    if options.max_churn is not None:
        left = [row for row, churn in zip(left, _churns(state, left), strict=True) if churn <= options.max_churn]
    if not state.plan and options.mode != "event":
        left = [row for row, text in zip(left, hashes(state, left), strict=True) if _is_new(state, row, text)]
    return left


def hashes(state: EditState, numbers: Sequence[int]) -> list[int]:
    """A number for the text of each of these rows, the same for the same text."""
    rows = state.rows
    positions = torch.arange(rows.input_ids.shape[1], device=rows.input_ids.device)
    mixed = fold(positions, rows.input_ids).masked_fill(~rows.real, 0).sum(1)  # (B,)
    told = state.told(mixed)
    return [told[row] for row in numbers]


def texts(rows: Rows, widths: Sequence[int], state: EditState) -> list[list[int]]:
    """The tokens of each row, without filler."""
    return [row[:width] for row, width in zip(state.told(rows.input_ids), widths, strict=True)]


def _told(state: EditState, log: Tensor, moments: Tensor) -> tuple[list[list[float]], list[list[float]]]:
    """Both on the host, with one question."""
    width = moments.shape[1]
    told = state.told(torch.cat([log, torch.nn.functional.pad(moments, (0, log.shape[1] - width))]))
    return told[: len(log)], [row[:width] for row in told[len(log) :]]


def _in_order(entry: Sequence[float]) -> tuple[float, ...]:
    kind, row, position = entry[:3]
    return row, position, kind == INSERT


def _go_on(state: EditState, row: int, at: int, clock: float, left: float) -> float:
    """Note where a row has come to. Returns kappa, where it stood when its edits fired."""
    if at != state.at[row]:
        state.left[row] = 1.0
    state.at[row], state.clock[row] = min(at, len(state.plan) - 1) if state.plan else at, clock
    kappa = state.kappa(row)
    if left > 0:
        state.left[row], state.parts[row] = left, state.parts[row] + 1
    else:
        state.left[row], state.at[row] = 1.0, at + 1
    return kappa


def _churns(state: EditState, numbers: Sequence[int]) -> list[float]:
    """Edits made by edits needed, of each of these rows."""
    now = texts(state.rows, state.widths, state)
    return [state.made[row] / max(1, Levenshtein.distance(state.canvas.rows[row], now[row])) for row in numbers]


def _is_new(state: EditState, row: int, text: int) -> bool:
    known = text in state.seen[row]
    state.seen[row].add(text)
    return not known
