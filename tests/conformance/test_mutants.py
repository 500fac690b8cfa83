"""The suite proves what it says: every check has a mutant, and each mutant is caught by the check that is named."""

from __future__ import annotations

import inspect
from collections import Counter

import pytest

from dllm_core import conformance
from dllm_core.conformance.suite import Suite
from tests.conformance.mutant import Mutant, caught
from tests.conformance.mutants import all_mutants

MUTANTS = all_mutants()
CLASSES = {name: getattr(conformance, name) for name in conformance.__all__ if name.endswith("Tests")}


def every_check() -> set[str]:
    """``"SamplerTests.test_no_mask_is_left"`` of every test class."""
    return {f"{name}.{check}" for name, suite in CLASSES.items() for check in suite.checks()}


def test_every_check_has_a_mutant() -> None:
    assert sorted(every_check() - {mutant.check for mutant in MUTANTS}) == []


def test_every_mutant_names_a_check_and_itself() -> None:
    assert sorted({mutant.check for mutant in MUTANTS} - every_check()) == []
    names = Counter((mutant.check, mutant.name) for mutant in MUTANTS)
    assert [name for name, times in names.items() if times > 1] == []
    assert all(mutant.why.strip() and "\n" not in mutant.why for mutant in MUTANTS)
    assert len(MUTANTS) >= 40


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.check}-{mutant.name}")
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    assert caught(mutant), f"{mutant.check} passes a component that {mutant.why}"


@pytest.mark.parametrize("suite", CLASSES.values(), ids=CLASSES)
def test_every_check_says_what_why_and_how_to_mend(suite: type[Suite]) -> None:
    for name in suite.checks():
        paragraphs = (inspect.getdoc(getattr(suite, name)) or "").split("\n\n")
        assert len(paragraphs) == 3, f"{name}: {len(paragraphs)} paragraphs"
        first, why, mend = paragraphs
        assert first.endswith(".")
        assert why.startswith("Why: ")
        assert mend.startswith("Mend: ")
