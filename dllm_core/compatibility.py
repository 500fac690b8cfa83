"""Whether a plugin's requirement on dllm-core is met; pip does not look again after a later upgrade of the core."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable

_CORE = re.compile(r"dllm[-_.]+core(?![-\w.])", re.IGNORECASE)
_BOUND = re.compile(r"\s*(>=|<=|<|>)\s*(\d+(?:\.\d+)*)\s*")
_EXTRA = re.compile(r"\bextra\s*[=!]=")
_COMPARE = {">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt}


def requirement_on_core(requirements: Iterable[str]) -> str | None:
    """The unconditional ``Requires-Dist`` line that names dllm-core, None where there is none."""
    return next((line for line in requirements if _CORE.match(line) and not _EXTRA.search(line)), None)


def requirement_holds(requirement: str, version: str) -> bool:
    """Whether `version` of the core meets a requirement such as ``dllm-core<0.2,>=0.1``.

    `packaging` knows all of PEP 440, but takes longer to import than all plugins together; plain bounds, which nearly
    every plugin has, are compared without it.
    """
    clauses = _CORE.sub("", requirement, count=1).strip().split(",")
    if clauses == [""]:
        return True
    bounds = [bound for clause in clauses if (bound := _BOUND.fullmatch(clause))]
    if re.fullmatch(r"\d+(\.\d+)*", version) and len(bounds) == len(clauses):
        return all(_COMPARE[bound[1]](_numbers(version), _numbers(bound[2])) for bound in bounds)
    return _holds_exactly(requirement, version)


def _numbers(version: str) -> tuple[int, ...]:
    """``"0.1.0"`` and ``"0.1"`` are the same version."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _holds_exactly(requirement: str, version: str) -> bool:
    from packaging.requirements import Requirement

    parsed = Requirement(requirement)
    if parsed.marker is not None and not parsed.marker.evaluate():
        return True
    return parsed.specifier.contains(version, prereleases=True)
