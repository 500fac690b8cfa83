"""The answers of finished requests, on disk as soon as they are there, so that a killed run goes on where it stopped.

One line is one batch of the model, written at once: a kill leaves whole batches, and at most one torn line, which is
passed over. Every process writes a file of its own and reads those of all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_core.models import Denoiser

SAMPLED = 64  # numbers of each weight that its fingerprint is taken from


@dataclass(frozen=True)
class Batch:
    """What one batch gave.

    Args:
        answers: by request key; a text, or [log-likelihood, is greedy, standard error].
        forward_passes: calls of the model.
        tokens: tokens generated before the end of sequence; 0 for likelihoods.
        seconds: wall time.
    """

    answers: Mapping[str, object]
    forward_passes: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class Journal:
    """Finished batches, by request key.

    Args:
        folder: where the files are; None keeps everything in memory.
        process: number of this process, for the name of its file.

    Attributes:
        found: how many requests were there already.
        computed: how many were added.
    """

    folder: Path | None = None
    process: int = 0
    found: int = 0
    computed: int = 0
    _batches: dict[str, Batch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(self.folder.glob("requests-*.jsonl")):
                for batch in _read(file):
                    self._keep(batch)
        self.found = len(self._batches)

    def __contains__(self, key: str) -> bool:
        return key in self._batches

    def answer(self, key: str) -> object:
        return self._batches[key].answers[key]

    def batches(self, keys: Sequence[str]) -> list[Batch]:
        """The different batches that these requests were answered in, in the order of the requests."""
        return list({id(batch): batch for batch in (self._batches[key] for key in keys)}.values())

    def learn(self, batch: Batch) -> None:
        """Keep what another process computed; it wrote it down itself."""
        self._keep(batch)

    def write(self, batch: Batch) -> None:
        """Keep a batch and append it to this process's file."""
        self._keep(batch)
        self.computed += len(batch.answers)
        if self.folder is None:
            return
        with (self.folder / f"requests-{self.process}.jsonl").open("ab") as file:
            # A line break in front parts it from what a kill may have torn.
            file.write(b"\n" + json.dumps(asdict(batch)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _keep(self, batch: Batch) -> None:
        self._batches.update(dict.fromkeys(batch.answers, batch))


def request_key(*parts: object) -> str:
    """A name for a request: equal parts (JSON values) give the same name in every process."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def fingerprint(denoiser: Denoiser) -> str:
    """A name for a model by its weights: a few numbers of every tensor, so that a fine-tuned model has another one."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in denoiser.model.state_dict().items():
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // SAMPLED)][: 2 * SAMPLED]
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {some.double().tolist()}".encode())
    return digest.hexdigest()


def _read(file: Path) -> list[Batch]:
    batches = []
    for line in file.read_bytes().split(b"\n"):
        try:
            batches.append(Batch(**json.loads(line)))
        except (ValueError, TypeError):  # blank, or torn by a kill
            continue
    return batches
