"""Held-out exercises of ``llada-tiny`` as the documents of lm-eval tasks."""

from __future__ import annotations

from datasets import Dataset
from dllm_llada.tiny.evaluate import held_out_exercises
from dllm_llada.tiny.tasks import Line
from dllm_llada.tiny.tokenizer import MASK

COUNT = 500  # as in the table of the README
SEED = 0


def held_out(*, skill: str, **metadata: object) -> dict[str, Dataset]:
    """The documents of one skill: ``request`` and ``answer``; of a line with holes the answer is the whole line.

    Args:
        skill: name of the skill.
        metadata: of the task, which lm-eval passes along with additions of its own; the documents do not depend on it.
    """
    rows = [
        {"request": one.with_holes(MASK), "answer": one.text}
        if isinstance(one, Line)
        else {"request": one.request, "answer": one.answer}
        for one in held_out_exercises(skill, COUNT, SEED)
    ]
    return {"test": Dataset.from_list(rows)}
