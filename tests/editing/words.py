"""A tokenizer for which blanks are nothing, a model that the command can ask, and a sampler that does as it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dllm_core.samplers.output import SampleStats

NAMES = ["[PAD]", "[MASK]", "[CLS]", "[UNK]", "red", "green", "blue", "one", "two", "##s", "(", ")"]
PAD, MASK, CLS, UNKNOWN, RED, GREEN, BLUE, ONE, TWO, PLURAL, OPEN, CLOSE = range(len(NAMES))


@cache
def words() -> PreTrainedTokenizerFast:
    vocabulary = {name: number for number, name in enumerate(NAMES)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    marks = {"pad_token": "[PAD]", "mask_token": "[MASK]", "cls_token": "[CLS]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)


def model(tokenizer: PreTrainedTokenizerFast, context: int | None = None) -> SimpleNamespace:
    """What the command asks of a denoiser."""
    return SimpleNamespace(
        tokenizer=tokenizer,
        mask_token_id=tokenizer.mask_token_id,
        bos_token_id=tokenizer.bos_token_id,
        context_length=context,
    )


@dataclass(frozen=True)
class Told:
    kind: str
    position: int
    old: int | None
    new: int | None
    step: int
    time: float = 0.25
    probability: float = 0.75


@dataclass
class State:
    ids: list[int]
    locked: list[bool]
    gaps: list[bool]
    operations: list[list[Told]] = field(default_factory=lambda: [[]])
    index: int = 0
    finished: bool = False
    stats: SampleStats = field(default_factory=SampleStats)


@dataclass
class Obedient:
    """Makes the edits (kind, position, token) of a script, one a step, where they are allowed."""

    denoiser: SimpleNamespace
    script: list[tuple[str, int, int]]
    obeys: bool = True

    def start_edit(self, rows, *, locked, gaps) -> State:
        return State(list(rows[0]), list(locked[0]), list(gaps[0]), finished=not self.script)

    def step(self, state: State) -> None:
        kind, position, new = self.script[state.index]
        at = position % len(state.ids) if state.ids else 0
        state.stats.forward_passes += 1
        allowed = state.gaps[at] if kind == "insert" else not state.locked[at]
        if allowed or not self.obeys:
            old = None if kind == "insert" else state.ids[at]
            new = None if kind == "delete" else new
            state.operations[0].append(Told(kind, at, old, new, state.index))
            self._write(state, kind, at, new)
        state.index += 1
        state.finished = state.index == len(self.script) or not state.ids

    def finish(self, state: State) -> SimpleNamespace:
        return SimpleNamespace(stats=state.stats)

    def suspicion(self, rows, locked, gaps) -> torch.Tensor:
        free = 1 - torch.tensor(locked).double()
        return torch.stack([free * 0.5, free * 0.25, torch.tensor(gaps) * 0.125], -1)

    def _write(self, state: State, kind: str, at: int, new: int | None) -> None:
        if kind == "substitute":
            state.ids[at] = new
        for column, value in ((state.ids, new), (state.locked, False), (state.gaps, True)):
            if kind == "delete":
                del column[at]
            if kind == "insert":
                column.insert(at + 1, value)
