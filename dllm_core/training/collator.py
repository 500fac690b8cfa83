"""From examples of unequal length to one batch.

Shapes: B batch, L length of the longest example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dllm_core.config import at_least
from dllm_core.errors import DataError
from dllm_core.objectives.base import IGNORED_LABEL


@dataclass(frozen=True, kw_only=True)
class DiffusionCollator:
    """Pads on the right. An example has ``input_ids`` and perhaps ``labels`` (-100 = context); nothing else is read.

    Args:
        pad_token_id: the filler; with `learn_padding` the end of sequence.
        learn_padding: the filler counts as text: attended to and predicted, as the end of
            sequence is in LLaDA (arXiv:2502.09992, section 2.3). Otherwise it is neither, and a batch with filler has
            an ``attention_mask``.
        pad_to_multiple_of: round L up, so that a compiled model meets few different lengths.

    Raises:
        OptionError: `pad_to_multiple_of` below 1.
    """

    pad_token_id: int
    learn_padding: bool = False
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        at_least("pad_to_multiple_of", self.pad_to_multiple_of, 1)

    def __call__(self, examples: Sequence[Mapping[str, Sequence[int] | Tensor]]) -> dict[str, Tensor]:
        """``input_ids``, ``labels`` (B, L) int64; where there is filler to leave out, ``attention_mask`` (B, L) bool.

        Raises:
            DataError: labels that are not one per token.
        """
        ids = [torch.as_tensor(example["input_ids"]) for example in examples]
        labels = [torch.as_tensor(example.get("labels", example["input_ids"])) for example in examples]
        for row, (own_ids, own_labels) in enumerate(zip(ids, labels, strict=True)):
            if len(own_ids) != len(own_labels):
                raise DataError(
                    f"example {row} of a batch has {len(own_ids)} input_ids and {len(own_labels)} labels; give one "
                    f"label per token, {IGNORED_LABEL} for context"
                )
        batch = {
            "input_ids": self._stack(ids, self.pad_token_id),
            "labels": self._stack(labels, self.pad_token_id if self.learn_padding else IGNORED_LABEL),
        }
        length = batch["input_ids"].shape[1]
        if not self.learn_padding and any(len(row) < length for row in ids):
            lengths = torch.tensor([len(row) for row in ids])
            batch["attention_mask"] = torch.arange(length) < lengths[:, None]
        return batch

    def _stack(self, rows: list[Tensor], filler: int) -> Tensor:
        stacked = pad_sequence(rows, batch_first=True, padding_value=filler).long()  # (B, L)
        missing = -stacked.shape[1] % self.pad_to_multiple_of
        return torch.nn.functional.pad(stacked, (0, missing), value=filler) if missing else stacked
