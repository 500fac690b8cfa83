"""Runs test classes of the suite without pytest, and finds those of an installed plugin.

A plugin declares its components' capabilities in a module ``conformance`` of its package: one test class a component.
A component without one is checked with the default capabilities of its kind.
"""

from __future__ import annotations

import importlib.util
import inspect
import time
import traceback
import unittest
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from dllm_core import conformance
from dllm_core.conformance.own import SUITES
from dllm_core.conformance.suite import Suite
from dllm_core.errors import DllmError
from dllm_core.plugins import CORE, KINDS, PluginRecord, attempt, import_string, one_line

State = Literal["passed", "failed", "skipped", "error"]
PLUGIN = "plugin"  # the kind of `PluginTests`, which has no component
HOME = "dllm_core.conformance"

# The test class of each kind, and why it cannot run as it is; None: it can.
CLASSES: dict[str, tuple[str | None, str | None]] = {
    "objective": ("ObjectiveTests", None),
    "adapter": ("AdapterTests", "it needs a test class with tiny_config(), a small configuration of the family"),
    "sampler": ("SamplerTests", None),
    "commit rule": ("CommitRuleTests", None),
    "cache policy": ("CachePolicyTests", None),
    "eval task": ("EvalTaskTests", None),
    "eval preset": (None, "a preset is a file, which the checks of the plugin read"),
}


@dataclass(frozen=True)
class Doc:
    """The three paragraphs of a check's docstring, each without line breaks; empty where there is none."""

    guards: str
    why: str
    mend: str


@dataclass(frozen=True)
class Outcome:
    """What came of one check.

    Args:
        check: name of the method.
        state: ``error`` where something else than the check's own AssertionError was raised.
        seconds: that it took.
        message: why it failed or was skipped, in one line; None where it passed.
        doc: what the check is about.
        notes: what it measured.
        traceback: of an error that is not the framework's own.
    """

    check: str
    state: State
    seconds: float
    message: str | None
    doc: Doc
    notes: tuple[str, ...] = ()
    traceback: str | None = None


@dataclass(frozen=True)
class Group:
    """One component, or the plugin itself, and the test class that checks it.

    Args:
        kind: a kind of `dllm_core.registry`, or ``plugin``.
        subject: id ``plugin/name``, or the plugin's name.
        suite: the test class; None where there is none that can run.
        declared: the plugin brings the test class; otherwise it is the suite's, with default capabilities.
        reason: why nothing can run.
    """

    kind: str
    subject: str
    suite: type[Suite] | None
    declared: bool
    reason: str | None = None


def run(suite: type[Suite]) -> Iterator[Outcome]:
    """The outcomes of all checks of a test class, each on an instance of its own, as they are ready.

    A component that cannot be loaded is one error, not one for each check.
    """
    if suite.kind:
        loading = run_check(suite, "load_component")
        if loading.state != "passed":
            yield replace(loading, doc=Doc("", "", ""))  # it is no check, and its error says all
            return
    for name in suite.checks():
        yield run_check(suite, name)


def run_check(suite: type[Suite], name: str) -> Outcome:
    """The outcome of one check; only an interrupt from the keyboard passes through."""
    tests, started = suite(), time.perf_counter()
    _, error = attempt(getattr(tests, name))
    seconds = time.perf_counter() - started
    state = _state(error)
    return Outcome(
        check=name,
        state=state,
        seconds=seconds,
        message=_message(error),
        doc=read_doc(getattr(suite, name)),
        notes=getattr(tests, "notes", ()),
        traceback=_traceback(error) if state == "error" else None,
    )


def read_doc(check: object) -> Doc:
    """What a check's docstring says."""
    paragraphs = [" ".join(text.split()) for text in (inspect.getdoc(check) or "").split("\n\n")]
    named = {text.partition(":")[0]: text.partition(":")[2].strip() for text in paragraphs[1:]}
    return Doc(guards=paragraphs[0], why=named.get("Why", ""), mend=named.get("Mend", ""))


def groups_of(record: PluginRecord) -> list[Group]:
    """What is to be checked of a plugin: itself, then its components in the order in which it lists them.

    Of a plugin that does not load only the plugin itself, which says why.

    Raises:
        ComponentLoadError: the plugin's module of test classes does not import.
    """
    if record.state != "ok":
        return [_default_plugin(record.name)]
    declared = [_declared_group(record, suite) for suite in declared_suites(record)]
    wanted = [_default_plugin(record.name)]
    wanted += [_default_group(record.name, kind, spec.name) for kind in KINDS for spec in record.of(KINDS[kind])]
    found: list[Group] = []
    for default in wanted:
        same = [group for group in declared if (group.kind, group.subject) == (default.kind, default.subject)]
        found += same or [default]
    return found + [group for group in declared if group not in found]


def declared_suites(record: PluginRecord) -> list[type[Suite]]:
    """The test classes that a plugin brings, in the module ``conformance`` of its package.

    Raises:
        ComponentLoadError: that module does not import.
    """
    if record.name == CORE:
        return SUITES
    module = f"{record.target.partition('.')[0]}.conformance"
    try:
        present = importlib.util.find_spec(module) is not None
    except ImportError:  # the plugin is a single module
        present = False
    names = import_string(f"{module}:__dict__") if present else {}
    return [value for value in names.values() if _is_test_class(value)]


def _is_test_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Suite) and not value.__module__.startswith(HOME)


def _declared_group(record: PluginRecord, suite: type[Suite]) -> Group:
    """The group of a test class; a component named by its import string gets the id that it is registered under."""
    if not suite.kind:
        return Group(PLUGIN, suite.plugin, suite, declared=True)
    known = {spec.target: f"{record.name}/{spec.name}" for spec in record.of(KINDS[suite.kind])}
    subject = (
        suite.component if "/" in suite.component or ":" in suite.component else f"{record.name}/{suite.component}"
    )
    return Group(suite.kind, known.get(subject, subject), suite, declared=True)


def _default_plugin(name: str) -> Group:
    suite = type("Default", (conformance.PluginTests,), {"plugin": name, "__module__": __name__})
    return Group(PLUGIN, name, suite, declared=False)


def _default_group(plugin: str, kind: str, name: str) -> Group:
    class_name, reason = CLASSES[kind]
    subject = f"{plugin}/{name}"
    if class_name is None or reason is not None:
        return Group(kind, subject, None, declared=False, reason=reason)
    base = getattr(conformance, class_name)
    suite = type("Default", (base,), {"component": subject, "__module__": __name__})
    return Group(kind, subject, suite, declared=False)


def _state(error: BaseException | None) -> State:
    if error is None:
        return "passed"
    if isinstance(error, unittest.SkipTest):
        return "skipped"
    return "failed" if isinstance(error, AssertionError) else "error"


def _traceback(error: BaseException) -> str | None:
    """Where it happened; the framework's own errors say all in their message."""
    return None if isinstance(error, DllmError) else "".join(traceback.format_exception(error))


def _message(error: BaseException | None) -> str | None:
    """Why a check did not pass. An assertion's own words in full, they are written to be read."""
    if error is None:
        return None
    if isinstance(error, (AssertionError, unittest.SkipTest, DllmError)) and str(error):
        return " ".join(str(error).split())
    return one_line(error)
