"""The runner: what becomes of a check, and which checks a plugin gets."""

from __future__ import annotations

import unittest
from typing import ClassVar

import pytest

from dllm_core.conformance import CachePolicyTests, PluginTests
from dllm_core.conformance.runner import CLASSES, Doc, groups_of, read_doc, run, run_check
from dllm_core.conformance.suite import Suite, requires
from dllm_core.hookspecs import CachePolicySpec, EvalPresetSpec, ModelAdapterSpec, Spec
from dllm_core.plugins import KINDS, PluginRecord


class Checks(Suite):
    """Not collected: its name does not start with Test."""

    can_fly = False
    expected_failures: ClassVar[dict] = {}

    def test_that_passes(self) -> None:
        """It holds.

        Why: because
        of this.

        Mend: do that.
        """
        self.notes = ("measured 3",)

    def test_that_fails(self) -> None:
        """It does not hold."""
        raise AssertionError("got 1,\nexpected 2")

    def test_that_is_left_out(self) -> None:
        """It does not apply."""
        raise unittest.SkipTest("no network")

    @requires("can_fly")
    def test_that_needs_something(self) -> None:
        """It needs a capability."""
        raise AssertionError("must not run")

    def test_that_ends_early(self) -> None:
        """It calls sys.exit."""
        raise SystemExit(3)

    def test_that_is_interrupted(self) -> None:
        """Somebody pressed Ctrl-C."""
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "state", "message"),
    [
        ("test_that_passes", "passed", None),
        ("test_that_fails", "failed", "got 1, expected 2"),
        ("test_that_is_left_out", "skipped", "no network"),
        ("test_that_needs_something", "skipped", "can_fly is not declared"),
        ("test_that_ends_early", "error", "it called sys.exit(3)"),
    ],
)
def test_what_becomes_of_a_check(name: str, state: str, message: str | None) -> None:
    outcome = run_check(Checks, name)
    assert (outcome.check, outcome.state, outcome.message) == (name, state, message)
    assert outcome.notes == (("measured 3",) if state == "passed" else ())
    assert ("SystemExit: 3" in (outcome.traceback or "")) == (state == "error")


def test_an_interrupt_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        run_check(Checks, "test_that_is_interrupted")


def test_a_docstring_is_read_by_paragraphs() -> None:
    assert read_doc(Checks.test_that_passes) == Doc("It holds.", "because of this.", "do that.")
    assert read_doc(Checks.test_that_fails) == Doc("It does not hold.", "", "")
    assert read_doc(lambda: None) == Doc("", "", "")


def test_a_component_that_cannot_be_loaded_is_one_error() -> None:
    class Lost(CachePolicyTests):
        component = "no_such_package:Policy"

    (outcome,) = run(Lost)
    assert (outcome.check, outcome.state) == ("load_component", "error")
    assert outcome.message == "cannot import 'no_such_package:Policy': No module named 'no_such_package'"


def test_every_kind_of_component_has_a_test_class_or_a_reason() -> None:
    assert set(CLASSES) == set(KINDS)
    assert all(name or reason for name, reason in CLASSES.values())


def record(*specs: Spec, state: str = "ok", target: str = "no_such_package.plugin") -> PluginRecord:
    return PluginRecord(name="acme", distribution="dllm-acme", version="1", target=target, state=state, specs=specs)


def spec(kind: type[Spec], name: str, **more: object) -> Spec:
    return kind(name=name, summary="-", source="original", target=f"acme:{name}", **more)


def test_components_without_a_class_get_the_defaults_of_their_kind() -> None:
    specs = [spec(CachePolicySpec, "near"), spec(ModelAdapterSpec, "acme", model_types=("acme",))]
    plugin, adapter, policy, preset = groups_of(record(*specs, spec(EvalPresetSpec, "table-1")))
    assert (plugin.kind, plugin.subject, plugin.declared) == ("plugin", "acme", False)
    assert issubclass(plugin.suite, PluginTests)
    assert plugin.suite.plugin == "acme"
    assert issubclass(policy.suite, CachePolicyTests)
    assert (policy.suite.component, policy.declared) == ("acme/near", False)
    assert (adapter.suite, preset.suite) == (None, None)
    assert "tiny_config()" in adapter.reason
    assert "a preset is a file" in preset.reason


def test_declared_classes_come_first_several_for_one_component_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def declare(component: str) -> type[Suite]:
        return type("TestNear", (CachePolicyTests,), {"component": component})

    classes = [declare(name) for name in ("near", "acme/near", "acme:near", "acme/gone")]
    monkeypatch.setattr("dllm_core.conformance.runner.declared_suites", lambda record: classes)
    found = groups_of(record(spec(CachePolicySpec, "near"), spec(CachePolicySpec, "far")))
    assert [(group.subject, group.declared) for group in found] == [
        ("acme", False),
        ("acme/near", True),
        ("acme/near", True),
        ("acme/near", True),
        ("acme/far", False),
        ("acme/gone", True),
    ]


def test_a_plugin_that_does_not_load_is_asked_only_why() -> None:
    (group,) = groups_of(record(spec(CachePolicySpec, "near"), state="broken"))
    assert group.kind == "plugin"
