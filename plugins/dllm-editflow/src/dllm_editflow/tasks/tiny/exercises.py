"""Held-out exercises of ``editflow-tiny`` as the documents of lm-eval tasks."""

from __future__ import annotations

from datasets import Dataset
from dllm_editflow.tiny.evaluate import held_out as drawn

COUNT = 500  # as in the table of the README


def held_out(*, kind: str, **metadata: object) -> dict[str, Dataset]:
    """The documents of one kind: ``draft``, and ``text``, which it is to become.

    Args:
        kind: as of `dllm_editflow.tiny.evaluate.KINDS`.
        metadata: of the task, which lm-eval passes along with additions of its own; the documents do not depend on it.
    """
    return {"test": Dataset.from_list([{"draft": one.draft, "text": one.text} for one in drawn(kind, COUNT)])}
