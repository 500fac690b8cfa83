"""From answers to MBPP's questions to programs. Answers and programs: a list of samples for each document."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dllm_core.evaluation.execution import pass_at_k

if TYPE_CHECKING:
    from datasets import Dataset

Doc = Mapping[str, Any]
Answers = Sequence[Sequence[str]]
EXAMPLES = (2, 3, 4)  # task_id
BLOCK = re.compile(r"```(?:\w+)?\n?(.*?)\n?```", re.DOTALL)
# What stands around quoted code, the surest first; a model may leave out either end.
QUOTES = (
    re.compile(r"\[BEGIN\](.*?)\[?DONE", re.DOTALL),
    re.compile(r"```(?:python)?\s*(.*?)(?:```|$)", re.DOTALL),
    re.compile(r"\[BEGIN\](.*)", re.DOTALL),
    re.compile(r"(.*?)(?:```|\[?DONE)", re.DOTALL),
)

__all__ = ["examples", "fenced", "pass_at_k", "quoted", "whole"]


def examples(documents: Dataset) -> list[Doc]:
    """The documents that are shown in front of the question."""
    return [doc for doc in documents if doc["task_id"] in EXAMPLES]


def whole(answers: Answers, docs: Sequence[Doc]) -> list[list[str]]:
    """The answer as it is."""
    return [list(own) for own in answers]


def fenced(answers: Answers, docs: Sequence[Doc]) -> list[list[str]]:
    """The first block of code of an answer that begins inside one; empty where it has no end.

    As in lm-eval, an answer that does not begin with a line break loses its first word, which is read as the name of a
    language.
    """
    return [[_fenced(answer) for answer in own] for own in answers]


def quoted(answers: Answers, docs: Sequence[Doc]) -> list[list[str]]:
    """The code between [BEGIN] and [DONE] or in a block, without quotation marks."""
    return [[_quoted(answer) for answer in own] for own in answers]


def _fenced(answer: str) -> str:
    # The prompt ends with the opening fence. Where the answer has a fence of its own, that one counts.
    found = BLOCK.search(f"```{answer}") or BLOCK.search(answer.replace("```python", "```"))
    return found.group(1) if found else ""


def _quoted(answer: str) -> str:
    found = next((match for match in (each.search(answer) for each in QUOTES) if match), None)
    code = (found.group(1) if found else answer).strip()
    return code.removeprefix("'").removesuffix("'")
