"""Recording a trace: take the edits of each step, or compare the canvas with the one before where a step has none.

Shapes: B rows, L canvas length, N changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dllm_core.display.text import TokenText, runs
from dllm_core.display.trace import COLUMNS, DELETED, INSERTED, LENGTH, WRITTEN, Trace, TraceRow

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
    lengths: Sequence[int]  # of each row before the first step
    edits: bool = False  # whether the steps insert and delete
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
        canvases = canvas, canvas, state.canvas.completes, state.canvas.shown
        self._batch = _Batch(len(self._rows), captions, *canvases)

    def show(self, step: Step) -> None:
        """Take note of a step."""
        batch = self._batch
        after = step.input_ids.cpu().numpy()
        if step.edits is not None:
            batch.edits = True
            self._keep(step, **_columns(step.edits))
        else:
            self._compare(step, after)
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
            before = batch.before[number, : batch.lengths[number] if batch.edits else stop].tolist()
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

    def _compare(self, step: Step, after: np.ndarray) -> None:
        """Keep what a step without edits changed."""
        batch = self._batch
        if after.shape != batch.now.shape:
            every = np.arange(len(after))
            whole = np.full_like(every, after.shape[1])
            self._keep(step, row=every, kind=np.full_like(every, LENGTH), position=np.zeros_like(every), token=whole)
            batch.now = _resized(batch.now, after.shape[1], self._mask_id)
        rows, positions = np.nonzero(after != batch.now)
        self._keep(
            step,
            row=rows,
            kind=np.full_like(rows, WRITTEN),
            position=positions,
            token=after[rows, positions],
            confidence=step.confidence.cpu().numpy()[rows, positions],
        )

    def _keep(
        self,
        step: Step,
        *,
        row: np.ndarray,
        kind: np.ndarray,
        position: np.ndarray,
        token: np.ndarray,
        confidence: np.ndarray | None = None,
    ) -> None:
        self._seen.update(np.unique(token[kind < DELETED]).tolist())
        values = {
            "row": row + self._batch.first,
            "step": np.full_like(row, step.index),
            "block": np.full_like(row, step.block),
            "kind": kind,
            "position": position,
            "token": token,
            "confidence": np.full(len(row), np.nan) if confidence is None else confidence,
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


KINDS = {"substitute": WRITTEN, "insert": INSERTED, "delete": DELETED}


def _columns(edits: Sequence[Sequence[Edit]]) -> dict[str, np.ndarray]:
    """The edits of each row as the columns of a trace."""
    found = [(row, KINDS[edit.kind], edit.position, edit.new or 0) for row, own in enumerate(edits) for edit in own]
    columns = np.array(found, dtype=np.int64).reshape(-1, 4).T
    return dict(zip(("row", "kind", "position", "token"), columns, strict=True))


def _resized(canvas: np.ndarray, length: int, mask_id: int) -> np.ndarray:
    """(B, L) -> (B, length): cut, or filled with masks."""
    resized = np.full((len(canvas), length), mask_id, dtype=canvas.dtype)
    kept = min(length, canvas.shape[1])
    resized[:, :kept] = canvas[:, :kept]
    return resized
