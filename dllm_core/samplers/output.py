"""What a sampler gives back: a `Step` for each step, a `SampleOutput` at the end.

Shapes: B rows, L canvas length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Edit(Protocol):
    """One edit of a row, as samplers that insert and delete report it; a sampler's own record of it will do.

    Edits of one step happen at once, so all positions count in the row before the step.

    Args:
        kind: what happens.
        position: of the token that is substituted or deleted; an insertion stands behind it, -1: in front of all.
        old: id of the token that goes; None for an insertion.
        new: id of the token that comes; None for a deletion.
    """

    @property
    def kind(self) -> Literal["insert", "delete", "substitute"]: ...

    @property
    def position(self) -> int: ...

    @property
    def old(self) -> int | None: ...

    @property
    def new(self) -> int | None: ...


@dataclass(frozen=True)
class Step:
    """One denoising step.

    A sampler that inserts and deletes may give back a canvas of another length than the step before, filled up on the
    right; ``edits`` then says how each row came from the one before.

    Args:
        index: number of the step, from 0.
        block: number of the block that it worked on, from 0.
        input_ids: (B, L) int64, the canvas after the step.
        committed: (B, L) bool, positions that the step wrote.
        confidence: (B, L) float32, at the positions that were proposed; nan elsewhere.
        done: (B,) bool, rows that are finished.
        edits: of each row its edits in order of position, a change of a token before an insertion behind it; None where
            every position keeps its place.
    """

    index: int
    block: int
    input_ids: torch.Tensor
    committed: torch.Tensor
    confidence: torch.Tensor
    done: torch.Tensor
    edits: Sequence[Sequence[Edit]] | None = None


@dataclass
class SampleStats:
    """Counts of one run, over all its rows.

    Args:
        forward_passes: calls of the model.
        positions_processed: positions that went through the model's body, padding included.
        logit_rows: positions that were projected through the vocabulary head.
        cache_bytes: memory that the cache policy holds for keys and values.
        host_syncs: how often the loop asked the device for a value, for which an accelerator is waited for: whether a
            block is done, which rows have ended, and the result.
        tokens: tokens generated before the end of sequence.
        seconds: wall time.
    """

    forward_passes: int = 0
    positions_processed: int = 0
    logit_rows: int = 0
    cache_bytes: int = 0
    host_syncs: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / self.forward_passes if self.forward_passes else 0.0

    def as_dict(self) -> dict[str, float]:
        """All counts and rates, for JSON."""
        return {
            "forward_passes": self.forward_passes,
            "positions_processed": self.positions_processed,
            "logit_rows": self.logit_rows,
            "cache_bytes": self.cache_bytes,
            "host_syncs": self.host_syncs,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_forward": self.tokens_per_forward,
        }


@dataclass(frozen=True)
class SampleOutput:
    """The finished rows; printing it prints their texts.

    Args:
        sequences: (B, L) int64, prompt then completion, padded on the right.
        lengths: (B,) int64, prompt and completion.
        prompt_lengths: (B,) int64; 0 for infilled canvases.
        texts: completions, cut at the end of sequence, special tokens removed; whole texts for infilled canvases.
            None where there is no tokenizer.
        stats: counts of the run.
    """

    sequences: torch.Tensor
    lengths: torch.Tensor
    prompt_lengths: torch.Tensor
    texts: list[str] | None
    stats: SampleStats

    def __str__(self) -> str:
        if self.texts is not None:
            return "\n".join(self.texts)
        rows = zip(self.sequences.tolist(), self.prompt_lengths.tolist(), self.lengths.tolist(), strict=True)
        return "\n".join(" ".join(map(str, row[start:stop])) for row, start, stop in rows)


def cut_at_end(tokens: list[int], end_token_ids: tuple[int, ...]) -> list[int]:
    """The tokens before the first end of sequence or end of turn."""
    ends = [i for i, token in enumerate(tokens) if token in end_token_ids]
    return tokens[: ends[0]] if ends else tokens


def completion_text(tokens: list[int], tokenizer: PreTrainedTokenizerBase, eot_texts: Sequence[str]) -> str:
    """The text of a completion, without special tokens, up to the first text that ends a turn.

    Such a text is looked for as it is written and as the tokenizer gives it back, which may put blanks in
    between.
    """
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    for written in eot_texts:
        given_back = tokenizer.decode(tokenizer(written, add_special_tokens=False)["input_ids"])
        for end in (written, given_back):
            if end in text:
                text = text[: text.index(end)].rstrip()
    return text
