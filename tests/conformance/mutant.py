"""A mutant: a component that is broken on purpose, and the check of the conformance suite that must catch it."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_core.conformance.suite import Suite


@dataclass(frozen=True)
class Mutant:
    """One broken component.

    Args:
        check: the check that must catch it, ``"SamplerTests.test_prompt_untouched"``.
        name: what the component does wrong, ``"shifts_prompt"``; unique beside its check.
        suite: the test class of the broken component; see `suite_for`.
        why: one line for the documentation: the defect in words, where it was met if it was.
    """

    check: str
    name: str
    suite: type[Suite]
    why: str

    @property
    def check_name(self) -> str:
        """``test_prompt_untouched``."""
        return self.check.partition(".")[2]


def suite_for(base: type[Suite], thing: object, **attributes: object) -> type[Suite]:
    """A subclass of a test class of the suite, for a component that no plugin registers.

    Args:
        base: the test class, for instance SamplerTests.
        thing: what ``load_component`` hands out: the class of the component, or whatever the kind asks for.
        attributes: capabilities and other class attributes or methods, none of them a standard check.
    """
    name = getattr(thing, "__name__", type(thing).__name__)
    # A colon makes it an import string, so nobody looks the component up among the registered ones.
    body = {"component": f"mutants:{name}", "load_component": lambda self: thing, "__module__": __name__}
    return type(f"{base.__name__}Of{name}", (base,), body | attributes)


def caught(mutant: Mutant) -> str | None:
    """What the named check says of the mutant; None where it passes. A skip or a crash is raised as it is."""
    check = getattr(mutant.suite(), mutant.check_name)
    try:
        check()
    except AssertionError as error:
        return str(error)
    return None
