"""A sampler that makes given edits, and a byte-level tokenizer that splits most letters outside ASCII."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dllm_core.samplers.output import SampleStats

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("r", "e"), ("re", "t"), ("Ġ", "a"), ("i", "n"), ("in", "t"), ("Ċ", "Ġ")]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate([*BYTES, *(a + b for a, b in MERGES)])}
    backend = Tokenizer(models.BPE(vocabulary, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@dataclass(frozen=True)
class Scripted:
    kind: str
    position: int
    old: int | None
    new: int | None
    step: int
    time: float = 0.0
    probability: float = 0.5


@dataclass
class State:
    rows: list[int]
    locked: list[bool]
    gaps: list[bool]
    left: int
    operations: list[list[Scripted]] = field(default_factory=lambda: [[]])

    @property
    def finished(self) -> bool:
        return self.left == 0


class ScriptedSampler:
    """Draws edits wherever they are allowed."""

    def __init__(self, seed: int, steps: int = 3, rate: float = 0.3, *, plain: bool = False) -> None:
        self.chance, self.steps, self.rate, self.plain = random.Random(seed), steps, rate, plain
        self.denoiser = SimpleNamespace(tokenizer=tokenizer(), context_length=None, bos_token_id=None)

    def start_edit(self, rows, *, locked, gaps) -> State:
        return State(list(rows[0]), list(locked[0]), list(gaps[0]), self.steps)

    def step(self, state: State) -> None:
        step, after, locked, gaps = self.steps - state.left, [], [], []
        for place, token in enumerate(state.rows):
            kind = self._kind(state.locked[place])
            if kind == "substitute":
                new = self._token()
                state.operations[0].append(Scripted(kind, place, token, new, step))
                after, locked, gaps = [*after, new], [*locked, False], [*gaps, state.gaps[place]]
            elif kind == "delete":
                state.operations[0].append(Scripted(kind, place, token, None, step))
            else:
                after, locked, gaps = [*after, token], [*locked, state.locked[place]], [*gaps, state.gaps[place]]
            if state.gaps[place] and self.chance.random() < self.rate:
                new = self._token()
                state.operations[0].append(Scripted("insert", place, None, new, step))
                after, locked, gaps = [*after, new], [*locked, False], [*gaps, True]
        state.rows, state.locked, state.gaps = after, locked, gaps
        state.left -= 1

    def finish(self, state: State):
        return SimpleNamespace(stats=SampleStats())

    def _kind(self, locked: bool) -> str | None:
        return None if locked or self.chance.random() > self.rate else self.chance.choice(["substitute", "delete"])

    def _token(self) -> int:
        if self.plain:  # a letter of ASCII
            return tokenizer().convert_tokens_to_ids(self.chance.choice("abcxyz"))
        return self.chance.randrange(len(BYTES) + len(MERGES))
