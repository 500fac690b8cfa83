"""From answers to HumanEval's questions to programs. Answers and programs: a list of samples for each document."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dllm_core.evaluation.execution import pass_at_k

Doc = Mapping[str, Any]
Answers = Sequence[Sequence[str]]
FENCE = "```"
BLOCK = re.compile(r"```[\w+-]*\s*\n?(.*?)(?:```|$)", re.DOTALL)

__all__ = ["continued", "continued_to_fence", "first_block", "pass_at_k", "sanitized"]


def continued(answers: Answers, docs: Sequence[Doc]) -> list[list[str]]:
    """The head of the function and the answer behind it."""
    return _each(answers, docs, lambda answer, doc: doc["prompt"] + answer)


def continued_to_fence(answers: Answers, docs: Sequence[Doc]) -> list[list[str]]:
    """The head of the function and the answer up to the end of its block of code."""
    return _each(answers, docs, lambda answer, doc: doc["prompt"] + answer.partition(FENCE)[0])


def first_block(answers: Answers, docs: Sequence[Doc]) -> list[list[str]]:
    """The first block of code, or the answer where there is none."""
    return _each(answers, docs, lambda answer, doc: _block(answer).lstrip())


def sanitized(answers: Answers, docs: Sequence[Doc]) -> list[list[str]]:
    """The head of the function and the first block of code, without what does not parse or is not used."""

    def program(answer: str, doc: Doc) -> str:
        code = answer.split(f"{FENCE}python\n", 1)[-1].split(FENCE)[0]
        return needed(f"{doc['prompt']}\n{code}", doc["entry_point"])

    return _each(answers, docs, program)


def needed(text: str, entry: str) -> str:
    """What a function needs of the longest part of a text that is Python: imports, and what it calls by name."""
    lines = _longest_program(text.splitlines())
    body = ast.parse("\n".join(lines)).body
    defined = {name: part for part in body for name in _names(part)}
    wanted, left = set(), [entry]
    while left:
        name = left.pop()
        if name in defined and name not in wanted:
            wanted.add(name)
            left += [each.id for each in ast.walk(defined[name]) if isinstance(each, ast.Name)]
    kept = [
        part
        for part in body
        if isinstance(part, (ast.Import, ast.ImportFrom))
        or any(defined[name] is part for name in wanted & _names(part))
    ]
    return "\n".join("\n".join(lines[_first_line(part) - 1 : part.end_lineno]) for part in kept)


def _longest_program(lines: Sequence[str]) -> Sequence[str]:
    best: Sequence[str] = ()
    for begin in range(len(lines)):
        for end in range(len(lines), begin + len(best), -1):
            if _parses(lines[begin:end]):
                best = lines[begin:end]
                break
    return best


def _parses(lines: Sequence[str]) -> bool:
    try:
        ast.parse("\n".join(lines))
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # a null byte; brackets without end
        return False
    return True


def _names(part: ast.stmt) -> set[str]:
    """What a statement defines."""
    if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {part.name}
    targets = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _first_line(part: ast.stmt) -> int:
    decorators = getattr(part, "decorator_list", ())
    return min([part.lineno, *(one.lineno for one in decorators)])


def _block(answer: str) -> str:
    found = BLOCK.search(answer)
    return found.group(1) if found else answer


def _each(answers: Answers, docs: Sequence[Doc], program: Callable[[str, Doc], str]) -> list[list[str]]:
    return [[program(answer, doc) for answer in own] for own, doc in zip(answers, docs, strict=True)]
