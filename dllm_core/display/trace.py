"""Traces: what a run changed at which step, small enough to keep and complete enough to replay without the model.

The file is a NumPy archive (``.npz``, compressed, no pickles): ``header``, UTF-8 JSON as bytes, and one entry per
change of the canvas in `COLUMNS`. A change at position `LENGTH` says that the row is now ``token`` positions long.

Shapes: B rows, L canvas length, N changes.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np

from dllm_core.errors import DataError

FORMAT = "dllm-trace"
VERSION = 1
LENGTH = -1
# Changes are sorted by row, then by step, so the first columns compress to almost nothing.
COLUMNS = {
    "row": np.uint16,
    "step": np.uint32,
    "block": np.uint16,
    "position": np.int32,
    "token": np.int32,
    "confidence": np.float16,
}


@dataclass(frozen=True)
class TraceRow:
    """One row of a trace.

    Args:
        caption: its prompt; empty for a text with blanks.
        start: the first position that is shown: where the completion begins, 0 for a text with blanks.
        steps: how many steps its run took.
        ids: the canvas before the first step.
        text: the result, as the run printed it.
        pieces: (start, stop, text) of the result's tokens; joined they are its text before any cut inside a token.
    """

    caption: str
    start: int
    steps: int
    ids: list[int]
    text: str
    pieces: list[tuple[int, int, str]]


@dataclass(frozen=True)
class Change:
    """What one step did to one row: position ``positions[i]`` now holds ``tokens[i]``.

    ``confidence`` is nan where the step proposed nothing, for instance where a sampler masked a token again.
    """

    step: int
    block: int
    positions: list[int]
    tokens: list[int]
    confidence: list[float]
    length: int | None = None


@dataclass(frozen=True)
class Trace:
    """A recorded run.

    Args:
        about: model, sampler, seed and options.
        mask_id: the token of positions that are not written.
        special_ids: tokens that the text leaves out.
        vocabulary: token id -> its text alone, for every token that ever stood on a canvas.
        rows: one an answer.
        columns: the changes, one array a column, each (N,).
    """

    about: Mapping[str, Any]
    mask_id: int
    special_ids: list[int]
    vocabulary: dict[int, str]
    rows: list[TraceRow]
    columns: dict[str, np.ndarray] = field(repr=False)

    def changes(self, row: int) -> Iterator[Change]:
        """The changes of a row, step after step."""
        own = self.columns["row"] == row
        lists = [self.columns[name][own].tolist() for name in COLUMNS if name != "row"]
        for (step, block), entries in groupby(zip(*lists, strict=True), key=lambda entry: entry[:2]):
            yield _change(step, block, [entry[2:] for entry in entries])

    def frames(self, row: int) -> Iterator[tuple[Change, list[int]]]:
        """Each change of a row with the canvas that it leaves."""
        ids = list(self.rows[row].ids)
        for change in self.changes(row):
            if change.length is not None:
                ids = ids[: change.length] + [self.mask_id] * (change.length - len(ids))
            for position, token in zip(change.positions, change.tokens, strict=True):
                ids[position] = token
            yield change, list(ids)


def _change(step: int, block: int, entries: Sequence[tuple[int, int, float]]) -> Change:
    length = next((token for position, token, _ in entries if position == LENGTH), None)
    written = [entry for entry in entries if entry[0] != LENGTH]
    positions, tokens, confidence = (list(column) for column in zip(*written, strict=True)) if written else ([], [], [])
    return Change(step, block, positions, tokens, confidence, length)


def write_trace(trace: Trace, file: IO[bytes]) -> None:
    """Write a trace to an open binary file."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "about": dict(trace.about),
        "mask_id": trace.mask_id,
        "special_ids": trace.special_ids,
        "vocabulary": {str(token): text for token, text in trace.vocabulary.items()},
        "rows": [asdict(row) for row in trace.rows],
    }
    encoded = json.dumps(header, ensure_ascii=False, default=str).encode("utf-8", errors="replace")
    np.savez_compressed(file, header=np.frombuffer(encoded, dtype=np.uint8), **trace.columns)


def read_trace(path: Path) -> Trace:
    """Read a trace.

    Raises:
        DataError: the file cannot be read, is no trace, or is one of a later version.
    """
    advice = "write one with dllm run --trace FILE"
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            columns = {name: archive[name] for name in COLUMNS} if header.get("version") == VERSION else {}
    except OSError as error:
        raise DataError(f"cannot read the trace {path}: {error.strerror or error}; {advice}") from error
    except (ValueError, KeyError, AttributeError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a trace; {advice}") from error
    if header.get("format") != FORMAT:
        raise DataError(f"{path} is not a trace; {advice}")
    if header["version"] != VERSION:
        found = header["version"]
        raise DataError(f"{path} is a trace of version {found}, this dllm reads {VERSION}; update dllm-core")
    return Trace(
        about=header["about"],
        mask_id=header["mask_id"],
        special_ids=header["special_ids"],
        vocabulary={int(token): text for token, text in header["vocabulary"].items()},
        rows=[TraceRow(**row | {"pieces": [tuple(piece) for piece in row["pieces"]]}) for row in header["rows"]],
        columns=columns,
    )
