"""Writes docs/conformance.md: each check of the conformance suite, what it guards, why, how to mend, and its mutants.

python docs/conformance.py

tests/conformance/test_page.py holds the page against this, so it cannot drift.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the mutants are tests, which are not installed

from dllm_core import conformance  # noqa: E402
from dllm_core.conformance.runner import CLASSES, HOME, read_doc  # noqa: E402
from dllm_core.conformance.suite import Suite  # noqa: E402
from tests.conformance.mutant import Mutant  # noqa: E402
from tests.conformance.mutants import all_mutants  # noqa: E402

PAGE = ROOT / "docs/conformance.md"
NAMES = ["PluginTests", *(name for name, _ in CLASSES.values() if name)]
INTRO = """\
# Conformance suite

What a plugin must hold, as test classes that the core ships. They run on the CPU, offline, on toy models whose
posterior is known exactly, or on a small random model of your family. This page is written by `docs/conformance.py`.

## Use it

One test class for the plugin and one for each component, with what the component can do. Put them into the module
`conformance` of your package, so that both pytest and the command line find them:

```python
# src/dllm_acme/conformance.py
from dllm_core.conformance import PluginTests, SamplerTests


class TestPlugin(PluginTests):
    plugin = "acme"


class TestCalm(SamplerTests):
    component = "acme/calm"
    supports_infill = False  # checks of infilling are skipped, and the report says so
```

```python
# tests/test_conformance.py
from dllm_acme.conformance import TestCalm, TestPlugin  # noqa: F401
```

`dllm plugins check acme` runs the same without pytest; `--json` gives the report as data. The exit code is 1 if a check
fails. A component without a test class is checked with the default capabilities of its kind, except for model adapters,
which need a configuration to build a small model from.

- **Capabilities** are class attributes, listed below with each test class. What is not declared is skipped, with the
  reason in the report.
- **Known failures** need a reason, and are strict, so that one that passes is reported:
  `expected_failures = {"test_steps_are_those_asked_for": "decodes until nothing changes, issue 12"}`.
- **Standard checks cannot be overridden**; a subclass that tries is refused when it is defined. Add your own `test_*`
  methods under other names.
- A check returns, raises `AssertionError` with a message that names the values and the next step, or raises
  `unittest.SkipTest`.

## What is checked

"""
MUTANTS_INTRO = """\
## Checks and their mutants

A check that nothing fails proves nothing. So every check has mutants, components that are broken on purpose, and this
repository's tests show that the check catches each of them (`tests/conformance/test_mutants.py`).

"""


def page() -> str:
    """The whole page."""
    mutants = all_mutants()
    checks = sum(len(getattr(conformance, name).checks()) for name in NAMES)
    total = f"{checks} checks in {len(NAMES)} test classes; {len(mutants)} mutants.\n\n"
    contents = "".join(_line_of_contents(name) for name in NAMES) + "\n"
    sections = "".join(section(name) for name in NAMES)
    return INTRO + total + contents + sections + MUTANTS_INTRO + mutant_table(mutants)


def section(name: str) -> str:
    """One test class: its attributes, then its checks."""
    suite = getattr(conformance, name)
    lines = [f"### {name}\n", f"{_markdown(read_doc(suite).guards)}\n"]
    if attributes := list(attributes_of(suite)):
        lines += ["Attributes of the test class:\n", *(f"- `{key}`: {text}" for key, text in attributes), ""]
    for check in suite.checks():
        function = getattr(suite, check)
        doc = read_doc(function)
        needs = [f"`{capability}`" for capability in capabilities(function)]
        only = f" Only with {' and '.join(needs)}." if needs else ""
        lines += [
            f"#### {check}\n",
            f"{_markdown(doc.guards)}{only}\n",
            f"- Why: {_markdown(doc.why)}",
            f"- Mend: {_markdown(doc.mend)}\n",
        ]
    return "\n".join(lines) + "\n"


def capabilities(check: object) -> list[str]:
    """What a check requires, outermost first."""
    found = []
    while hasattr(check, "capability"):
        found.append(check.capability)
        check = check.__wrapped__
    return found


def attributes_of(suite: type[Suite]) -> Iterator[tuple[str, str]]:
    """(name, text) of what a test class declares, from the sections "Attributes" of its docstring and its bases'."""
    for base in reversed(suite.__mro__):
        own = base.__module__.startswith(HOME) and base is not Suite and base.__doc__
        doc = inspect.getdoc(base) if own else ""
        _, _, listed = doc.partition("Attributes:\n")
        for name, text in re.findall(
            r"^    (\w[\w, ]*): (.*(?:\n     +.*)*)", listed.partition("\n\n")[0], re.MULTILINE
        ):
            yield name, _markdown(" ".join(text.split()))


def mutant_table(mutants: Iterable[Mutant]) -> str:
    """Markdown: one row a check, with all that it must catch."""
    by_check: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        by_check.setdefault(mutant.check, []).append(mutant)
    checks = [f"{name}.{check}" for name in NAMES for check in getattr(conformance, name).checks()]
    rows = [f"| `{check}` | {'<br>'.join(map(_broken, by_check.get(check, ())))} |" for check in checks]
    return "| check | catches a component that |\n|---|---|\n" + "\n".join(rows) + "\n"


def _broken(mutant: Mutant) -> str:
    return f"{mutant.why} (`{mutant.name}`)".replace("|", "\\|")


def _line_of_contents(name: str) -> str:
    suite = getattr(conformance, name)
    return f"- [{name}](#{name.lower()}): {len(suite.checks())} checks\n"


def _markdown(text: str) -> str:
    """A docstring's words as Markdown, in which one backquote is enough."""
    return text.replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
