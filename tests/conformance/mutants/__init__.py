"""All mutants, a module for each test class of the suite; each module has a list ``MUTANTS``."""

from __future__ import annotations

import importlib
import pkgutil

from tests.conformance.mutant import Mutant


def all_mutants() -> list[Mutant]:
    """The mutants of every module of this package, in the order of their names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [mutant for name in names for mutant in importlib.import_module(f"{__name__}.{name}").MUTANTS]
