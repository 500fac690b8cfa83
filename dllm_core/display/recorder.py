"""Recording a trace: compare the canvas with the one before, step after step.

Shapes: B rows, L canvas length, N changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dllm_core.display.cells import growth
from dllm_core.display.text import TokenText, runs
from dllm_core.display.trace import COLUMNS, LENGTH, Trace, TraceRow

if TYPE_CHECKING:
    from dllm_core.samplers.output import Edit, SampleOutput, Step
    from dllm_core.samplers.state import SamplerState


@dataclass
class _Batch:
    """The batch that is being recorded: its rows begin at number ``first`` of the trace."""

    first: int
    captions: Sequence[str]
    before: np.ndarray  # (B, L) int64, the canvas before the first step
    now: np.ndarray  # (B, L) int64
    completes: bool
    lengths: list[int]
    steps: int = 0


class TraceRecorder:
    """Records runs, batch after batch, into one trace.

    Every step's canvas is copied from the device, which a GPU is waited for: time a run without a trace.

    Args:
        tokens: gives the text of tokens.
        mask_id, special_ids, end_ids: the tokens that texts leave out, and those that end one.
    """

    def __init__(
        self, tokens: TokenText, *, mask_id: int, special_ids: Collection[int], end_ids: Collection[int]
    ) -> None:
        self._tokens = tokens
        self._mask_id, self._special_ids, self._end_ids = mask_id, frozenset(special_ids), frozenset(end_ids)
        self._rows: list[TraceRow] = []
        self._parts: list[dict[str, np.ndarray]] = []
        self._seen: set[int] = set()
        self._batch: _Batch | None = None

    def begin(self, state: SamplerState, captions: Sequence[str], pad_id: int) -> None:
        """Take note of a run that was just started."""
        canvas = state.canvas.cut(state.input_ids, pad_id).cpu().numpy().copy()
        self._seen.update(np.unique(canvas).tolist())
        lengths = list(state.canvas.shown)
        self._batch = _Batch(len(self._rows), captions, canvas, canvas, state.canvas.completes, lengths)

    def show(self, step: Step) -> None:
        """Take note of a step."""
        batch = self._batch
        after = step.input_ids.cpu().numpy()
        confidence = step.confidence.cpu().numpy()
        if step.edits is not None:
            self._keep(step, *self._new_lengths(step.edits))
            batch.now = _resized(batch.now, after.shape[1], self._mask_id)
            after = np.where(np.arange(after.shape[1]) < np.array(batch.lengths)[:, None], after, self._mask_id)
        elif after.shape != batch.now.shape:
            self._keep(step, *self._new_length(after))
            batch.now = _resized(batch.now, after.shape[1], self._mask_id)
        rows, positions = np.nonzero(after != batch.now)
        self._keep(step, rows, positions, after[rows, positions], confidence[rows, positions])
        batch.now = after.copy()
        batch.steps += 1

    def end(self, output: SampleOutput) -> None:
        """Take note of the results of the run."""
        batch = self._batch
        spans = zip(output.prompt_lengths.tolist(), output.lengths.tolist(), strict=True)
        texts = output.texts or [""] * len(batch.now)
        for number, (start, stop) in enumerate(spans):
            ids = batch.now[number, :stop].tolist()
            pieces = self._pieces(ids, start, batch.completes)
            before = batch.before[number, :stop].tolist()
            self._rows.append(TraceRow(batch.captions[number], start, batch.steps, before, texts[number], pieces))
        self._batch = None

    def trace(self, about: Mapping[str, Any]) -> Trace:
        """All that was recorded."""
        joined = {name: np.concatenate([part[name] for part in self._parts]) for name in COLUMNS}
        order = np.lexsort((joined["position"], joined["step"], joined["row"]))
        return Trace(
            about=about,
            mask_id=self._mask_id,
            special_ids=sorted(self._special_ids),
            vocabulary={token: self._tokens.alone(token) for token in sorted(self._seen)},
            rows=self._rows,
            columns={name: column[order] for name, column in joined.items()},
        )

    def _new_length(self, after: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = np.arange(len(after))
        return rows, np.full_like(rows, LENGTH), np.full_like(rows, after.shape[1]), np.full(len(rows), np.nan)

    def _new_lengths(self, edits: Sequence[Sequence[Edit]]) -> tuple[np.ndarray, ...]:
        """The rows that the edits of a step make longer or shorter, as changes."""
        batch = self._batch
        grown = [growth(own) for own in edits]
        batch.lengths = [length + more for length, more in zip(batch.lengths, grown, strict=True)]
        rows = np.flatnonzero(grown)
        lengths = np.array(batch.lengths)[rows]
        for row, length in zip(rows, lengths, strict=True):
            batch.now[row, length:] = self._mask_id  # as a reader cuts and fills it
        return rows, np.full_like(rows, LENGTH), lengths, np.full(len(rows), np.nan)

    def _keep(
        self, step: Step, rows: np.ndarray, positions: np.ndarray, tokens: np.ndarray, confidence: np.ndarray
    ) -> None:
        self._seen.update(np.unique(tokens[positions != LENGTH]).tolist())
        values = {
            "row": rows + self._batch.first,
            "step": np.full_like(rows, step.index),
            "block": np.full_like(rows, step.block),
            "position": positions,
            "token": tokens,
            "confidence": confidence,
        }
        self._parts.append({name: values[name].astype(dtype) for name, dtype in COLUMNS.items()})

    def _pieces(self, ids: list[int], start: int, completes: bool) -> list[tuple[int, int, str]]:
        """The texts of the tokens of a result, those behind its end left out."""
        ends = [place for place in range(start, len(ids)) if ids[place] in self._end_ids] if completes else []
        shown = ids[start : ends[0] if ends else len(ids)]
        hidden = self._special_ids | {self._mask_id}
        pieces = []
        for first, last in runs(shown, self._mask_id, self._special_ids):
            if shown[first] not in hidden:
                offset = start + first
                found = self._tokens.pieces(shown[first:last])
                pieces += [(offset + piece.start, offset + piece.stop, piece.text) for piece in found]
        return pieces


def _resized(canvas: np.ndarray, length: int, mask_id: int) -> np.ndarray:
    """(B, L) -> (B, length): cut, or filled with masks."""
    resized = np.full((len(canvas), length), mask_id, dtype=canvas.dtype)
    kept = min(length, canvas.shape[1])
    resized[:, :kept] = canvas[:, :kept]
    return resized
