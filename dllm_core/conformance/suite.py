"""What every test class of the suite shares: capabilities, known failures, and checks that cannot be overridden.

A check is a method ``test_*`` that returns, raises AssertionError, or raises unittest.SkipTest with a reason. pytest
collects subclasses whose names start with ``Test``; `dllm_core.conformance.runner` runs the same methods without
pytest.
"""

from __future__ import annotations

import functools
import unittest
from collections.abc import Callable, Mapping
from typing import ClassVar

from dllm_core import registry
from dllm_core.plugins import import_string


class Suite:
    """Base of the test classes; a third party subclasses one for each component.

    Attributes:
        kind: which components the class tests, a kind of `dllm_core.registry`; empty for whole plugins.
        component: id ``plugin/name`` of the component, or an import string ``"package.module:attribute"``.
        expected_failures: checks that are known to fail, each with its reason. Strict: one that passes is an error.
    """

    kind: ClassVar[str] = ""
    component: ClassVar[str]
    expected_failures: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        standard = {name for base in cls.__mro__[1:] for name in getattr(base, "_standard", ())}
        if cls.__module__.startswith("dllm_core.conformance"):
            cls._standard = {name for name in vars(cls) if name.startswith("test_")}
            return
        for name in sorted(standard & set(vars(cls))):
            raise TypeError(
                f"{cls.__name__} overrides the standard check {name}; if it fails for a good reason, say so: "
                f"expected_failures = {{{name!r}: 'why'}}"
            )
        for name, reason in cls.expected_failures.items():
            if name not in standard or not reason.strip():
                raise TypeError(f"{cls.__name__}: expected_failures needs standard checks with a reason, got {name!r}")
            setattr(cls, name, _known_to_fail(getattr(cls, name), reason))

    def load_component(self) -> object:
        """What `component` names: the class behind a registered id or an import string."""
        return import_string(self.component) if ":" in self.component else registry.load(self.kind, self.component)

    @classmethod
    def checks(cls) -> list[str]:
        """Names of the checks, in the order in which they are written."""
        ordered = [name for base in reversed(cls.__mro__) for name in vars(base) if name.startswith("test_")]
        return list(dict.fromkeys(ordered))


def requires(capability: str) -> Callable:
    """A check that only components with that capability must pass; others skip it and say so.

    The capability is an attribute of the test class, for instance ``supports_infill = True``.
    """

    def decorate(check: Callable[[Suite], None]) -> Callable[[Suite], None]:
        @functools.wraps(check)
        def guarded(self: Suite) -> None:
            if not getattr(self, capability):
                raise unittest.SkipTest(f"{capability} is not declared")
            check(self)

        guarded.capability = capability
        return guarded

    return decorate


def _known_to_fail(check: Callable[[Suite], None], reason: str) -> Callable[[Suite], None]:
    @functools.wraps(check)
    def strict(self: Suite) -> None:
        try:
            check(self)
        except AssertionError as error:
            raise unittest.SkipTest(f"known failure: {reason}") from error
        raise AssertionError(f"{check.__name__} passes, so it is no longer a known failure ({reason}); take it out")

    return strict
