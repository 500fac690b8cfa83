"""The requirement on the core: the cheap comparison and PEP 440 agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from dllm_core.compatibility import requirement_holds, requirement_on_core

versions = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
bounds = st.lists(st.tuples(st.sampled_from([">=", "<=", "<", ">"]), versions).map("".join), max_size=3)


@given(bounds, versions)
def test_plain_bounds_compare_as_packaging_does(clauses: list[str], version: str) -> None:
    specifier = ",".join(clauses)
    assert requirement_holds(f"dllm-core{specifier}", version) == SpecifierSet(specifier).contains(version)


@pytest.mark.parametrize(
    ("requirement", "version", "holds"),
    [
        ("dllm-core", "0.1.0", True),
        ("dllm-core>=0.1,<0.2", "0.1.0", True),
        ("dllm_core >=0.1, <0.2", "0.2", False),
        ("dllm-core~=0.1.0", "0.1.7", True),
        ("dllm-core~=0.1.0", "0.2.0", False),
        ("dllm-core==0.1.*", "0.1.3", True),
        ("dllm-core!=0.1.3", "0.1.3", False),
        ("dllm-core (>=0.3)", "0.1.0", False),
        ("dllm-core>=0.1", "0.2.dev1", True),
        ("dllm-core>=0.1; python_version < '3'", "0.0.1", True),
        ("dllm-core[extra]>=1", "0.1.0", False),
    ],
)
def test_requirements_hold(requirement: str, version: str, holds: bool) -> None:
    assert requirement_holds(requirement, version) is holds


def test_finds_the_requirement_on_the_core_among_the_others() -> None:
    lines = ["dllm-core-tools>=9", "click>=8", "dllm-core>=5; extra == 'next'", "DLLM_Core>=0.1", "torch"]
    assert requirement_on_core(lines) == "DLLM_Core>=0.1"
    assert requirement_on_core(["click", "dllm-corex"]) is None
