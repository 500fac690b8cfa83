"""Packing: short examples side by side in rows of one length, so that little is computed on padding.

Objectives keep the documents of a row apart by its ``document_ids``: attention is block-diagonal, positions begin anew,
and each document has a time of its own.

Shapes: B rows, L row length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_core.config import at_least
from dllm_core.errors import DataError
from dllm_core.objectives.base import IGNORED_LABEL, NO_DOCUMENT
from dllm_core.training.wrappers import Example


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which items share a row: each goes into the first row that has room for it, in order.

    Time is O(n log n): a tree over the rows holds the most room of each half.

    Raises:
        ValueError: an item longer than a row.
    """
    if any(length > capacity for length in lengths):
        raise ValueError(f"an item of {max(lengths)} does not fit into {capacity}")
    leaves = 1
    while leaves < len(lengths):
        leaves *= 2
    room = [capacity] * (2 * leaves)  # node k has the children 2k and 2k + 1; the leaves are the rows
    rows: list[list[int]] = [[] for _ in lengths]
    for item, length in enumerate(lengths):
        node = 1
        while node < leaves:
            node = 2 * node + (room[2 * node] < length)
        rows[node - leaves].append(item)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [row for row in rows if row]


@dataclass(frozen=True, kw_only=True)
class PackingCollator:
    """Packs the examples of a batch into as few rows as first-fit finds; B depends on the examples.

    Args:
        pad_token_id: fills what is left of a row.
        max_length: L, the length of every row.

    Raises:
        OptionError: a length below 1.
    """

    pad_token_id: int
    max_length: int

    def __post_init__(self) -> None:
        at_least("max_length", self.max_length, 1)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """``input_ids``, ``labels``, ``document_ids`` (B, L) int64; ``document_ids`` is -1 and labels -100 at padding.

        Documents of a row are numbered from 0.

        Raises:
            DataError: an example longer than a row, or labels that are not one per token.
        """
        ids = [torch.as_tensor(example["input_ids"]) for example in examples]
        labels = [torch.as_tensor(example.get("labels", example["input_ids"])) for example in examples]
        for place, (own_ids, own_labels) in enumerate(zip(ids, labels, strict=True)):
            if len(own_ids) > self.max_length:
                raise DataError(
                    f"example {place} of a batch has {len(own_ids)} tokens, a packed row holds {self.max_length}; set "
                    "a smaller data.max_length for the examples, or pack into longer rows"
                )
            if len(own_ids) != len(own_labels):
                raise DataError(
                    f"example {place} of a batch has {len(own_ids)} input_ids and {len(own_labels)} labels; give one "
                    f"label per token, {IGNORED_LABEL} for context"
                )
        rows = first_fit([len(own) for own in ids], self.max_length)
        batch = {
            "input_ids": torch.full((len(rows), self.max_length), self.pad_token_id),
            "labels": torch.full((len(rows), self.max_length), IGNORED_LABEL),
            "document_ids": torch.full((len(rows), self.max_length), NO_DOCUMENT),
        }
        for row, members in enumerate(rows):
            start = 0
            for document, member in enumerate(members):
                place = slice(start, start + len(ids[member]))
                batch["input_ids"][row, place] = ids[member]
                batch["labels"][row, place] = labels[member]
                batch["document_ids"][row, place] = document
                start = place.stop
        return batch
