"""Draw sources and align them where batches are made: in the workers that load data, beside the training.

Shapes: B batch, N columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dllm_core.config import one_of
from dllm_core.errors import OptionError
from dllm_core.objectives.base import IGNORED_LABEL
from dllm_core.training import CollatorWrapper
from dllm_core.training.wrappers import Collator, Example, batch_generator
from dllm_editflow.alignment import MODES
from dllm_editflow.coupling import Row, couple, with_locked_start
from dllm_editflow.sources import Tokens, parse_source


class AlignWrapper(CollatorWrapper):
    """Adds ``source_columns``, ``target_columns`` (B, N) int64 and ``editable_columns`` (B, N) bool to a batch.

    The objective takes them in place of its own `source` and `alignment`. Examples may bring ``source_ids``: the draft
    of their tokens to learn, for the source ``draft``. What is drawn follows from the tokens of the batch and the
    seed, so a resumed training draws what the unbroken one would have. In a recipe it is the last of
    ``data.collators``.

    Args:
        source, alignment: as in `dllm_editflow.objective.EditFlowObjective`.
        seed: of the draws.

    Raises:
        OptionError: no such source or alignment.
    """

    model_tokens: ClassVar[tuple[str, ...]] = ("mask_token_id", "bos_token_id", "text_token_ids")

    def __init__(
        self,
        collator: Collator,
        mask_token_id: int,
        bos_token_id: int | None,
        text_token_ids: Tensor,
        source: str = "draft",
        alignment: str = "optimal-shuffled",
        seed: int = 0,
    ) -> None:
        super().__init__(collator)
        one_of("alignment", alignment, MODES)
        if isinstance(collator, AlignWrapper):
            raise OptionError("data.collators aligns twice; leave one AlignWrapper out")
        self.maker = parse_source(source)
        self.tokens = Tokens(mask_token_id, text_token_ids)
        self.bos_token_id = bos_token_id
        self.alignment = alignment
        self.seed = seed

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        rows = [with_locked_start(_row(example), self.bos_token_id) for example in examples]
        generator = batch_generator(self.seed, examples)
        source, target, editable = couple(rows, self.maker, self.tokens, self.alignment, generator)
        columns = {"source_columns": source, "target_columns": target, "editable_columns": editable}
        return self.collator(examples) | columns


def _row(example: Example) -> Row:
    ids = torch.as_tensor(example["input_ids"])
    labels = torch.as_tensor(example.get("labels", example["input_ids"]))
    draft = example.get("source_ids")
    return Row(
        ids.tolist(), (labels != IGNORED_LABEL).tolist(), None if draft is None else torch.as_tensor(draft).tolist()
    )
