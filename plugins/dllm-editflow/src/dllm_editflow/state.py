"""What one run of the sampler carries from step to step, and how it is laid out.

Shapes: B rows, L tokens of the longest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dllm_core.errors import PromptError
from dllm_core.samplers.canvas import Canvas
from dllm_core.samplers.output import SampleStats
from dllm_editflow.apply import Rows
from dllm_editflow.grid import Move
from dllm_editflow.operations import INSERTED, Operation

MASKS, EMPTY, DRAFT = "masks", "empty", "draft"  # what the rows began as


@dataclass
class EditState:
    """A run under way; `EditFlowSampler.step` moves it on.

    Args:
        canvas: the rows as they were at the start.
        began_as: ``masks``, ``empty`` or ``draft``.
        rows: the texts now.
        widths: the lengths of the rows, known on the host.
        most_tokens: the longest that each row may become, None: any length.
        keys: (B,) int64, of the noise.
        plan: the steps of the grid; empty where the mode has none.
        at: of each row its next step.
        left: of each row what is left of that step, see `dllm_editflow.choosing.Part`.
        parts: of each row how many times a step was divided.
        clock: of each row -log(1 - kappa), for the mode ``event``.
        made: edits made in each row.
        active: the rows that are not finished.
        operations: the log of each row.
        expected: (B,) float64, edits that the model still expected when it was last asked; nan before.
        seen: hashes of the texts that each row has been, where the mode may go round in circles.
        index: steps taken.
    """

    canvas: Canvas
    began_as: str
    rows: Rows
    widths: list[int]
    most_tokens: list[int | None]
    keys: Tensor
    plan: Sequence[Move]
    at: list[int]
    left: list[float]
    parts: list[int]
    clock: list[float]
    made: list[int]
    active: list[int]
    operations: list[list[Operation]]
    expected: Tensor
    seen: list[set[float]]
    index: int = 0
    stats: SampleStats = field(default_factory=SampleStats)
    started: float = field(default_factory=time.perf_counter)

    @property
    def finished(self) -> bool:
        return not self.active

    @property
    def done(self) -> Tensor:
        """(B,) bool, the rows that are finished."""
        done = torch.ones(len(self.widths), dtype=torch.bool)
        done[self.active] = False
        return done

    @property
    def input_ids(self) -> Tensor:
        """(B, L) int64."""
        return self.rows.input_ids

    @property
    def lengths(self) -> Tensor:
        """(B,) int64."""
        return self.rows.lengths

    @property
    def locked(self) -> Tensor:
        """(B, L) bool, tokens that are never substituted nor deleted."""
        return self.rows.locked

    @property
    def gaps(self) -> Tensor:
        """(B, L) bool, tokens behind which something may be inserted."""
        return self.rows.gaps

    @property
    def source(self) -> Tensor:
        """(B, L) int64, where each token stood in the draft; -1 where an edit has put it there."""
        return self.rows.source

    def kappa(self, row: int) -> float:
        """Where a row stands."""
        if not self.plan:
            return 1 - math.exp(-self.clock[row])
        move, left = self.plan[self.at[row]], self.left[row]
        return move.kappa if left == 1 else 1 - (1 - move.kappa) * left

    def told(self, answer: Tensor) -> Any:
        """What the device has to say, as Python values; the host waits for it, which the counts of the run note."""
        self.stats.host_syncs += 1
        return answer.tolist()


def open_gaps(locked: Sequence[bool]) -> list[bool]:
    """Where something may be inserted, as training has it: behind a token that may change, or right before one."""
    return [not here or not behind for here, behind in zip(locked, [*locked[1:], True], strict=True)]


def lay_out(
    tokens: Sequence[Sequence[int]],
    locked: Sequence[Sequence[bool]],
    gaps: Sequence[Sequence[bool]],
    filler: int,
    device: torch.device,
) -> Rows:
    """Rows side by side, filled up on the right.

    Raises:
        PromptError: flags that are not as many as the tokens.
    """
    for name, flags in (("locked", locked), ("gaps", gaps)):
        for number, (row, own) in enumerate(zip(tokens, flags, strict=True)):
            if len(row) != len(own):
                raise PromptError(f"row {number} has {len(row)} tokens but {len(own)} flags in {name}; give one each")
    width = max(map(len, tokens))

    def side_by_side(values: Sequence[Sequence[int]], empty: int | bool, dtype: torch.dtype) -> Tensor:
        padded = [[*row, *[empty] * (width - len(row))] for row in values]
        return torch.tensor(padded, dtype=dtype, device=device)

    return Rows(
        input_ids=side_by_side(tokens, filler, torch.int64),
        lengths=torch.tensor([len(row) for row in tokens], device=device),
        locked=side_by_side(locked, True, torch.bool),
        gaps=side_by_side(gaps, False, torch.bool),
        source=side_by_side([range(len(row)) for row in tokens], INSERTED, torch.int64),
    )


def taken(rows: Rows, numbers: Sequence[int], width: int) -> Rows:
    """Some of the rows, as wide as they need."""
    if len(numbers) == len(rows.lengths):
        return Rows(*(each if each.dim() == 1 else each[:, :width] for each in rows))
    index = torch.tensor(numbers, device=rows.lengths.device)
    return Rows(*(each[index] if each.dim() == 1 else each[index, :width] for each in rows))


def put_back(values: Tensor, numbers: Sequence[int], part: Tensor, width: int, empty: object) -> Tensor:
    """The values (B, L), or (B,), with those of some rows exchanged; (B, W) where they have columns."""
    if len(numbers) == len(values) and (values.dim() == 1 or part.shape[1] == width):
        return part
    if values.dim() == 1:
        out = values.clone()
        out[torch.tensor(numbers, device=values.device)] = part
        return out
    out = values.new_full((len(values), width), empty)
    kept = min(width, values.shape[1])
    out[:, :kept] = values[:, :kept]
    index = torch.tensor(numbers, device=values.device)
    out[index] = torch.nn.functional.pad(part, (0, width - part.shape[1]), value=empty)
    return out
