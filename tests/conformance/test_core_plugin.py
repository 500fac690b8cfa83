"""The core is a plugin like others: it passes the checks of plugins, and each of its components has a test class."""

from __future__ import annotations

from dllm_core.conformance import PluginTests
from dllm_core.conformance.runner import groups_of
from dllm_core.plugins import installed_host


class TestCore(PluginTests):
    plugin = "core"


def test_every_component_of_the_core_is_checked_as_declared() -> None:
    core, *_ = installed_host().records
    _, *components = groups_of(core)
    assert [group.subject for group in components if not group.declared] == []
    assert len(components) >= len(core.specs)
