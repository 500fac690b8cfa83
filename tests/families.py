"""The families that are installed, each with a small model of random weights: its plugin's own conformance class."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from dllm_core.conformance import AdapterTests
from dllm_core.plugins import plugin_host


def adapter_suites() -> Iterator[type[AdapterTests]]:
    """The conformance classes of all installed plugins that check an adapter."""
    for record in plugin_host().records:
        if record.state != "ok" or not record.target:
            continue
        try:
            module = importlib.import_module(f"{record.target.partition('.')[0]}.conformance")
        except ModuleNotFoundError:
            continue
        for suite in vars(module).values():
            if isinstance(suite, type) and issubclass(suite, AdapterTests) and suite is not AdapterTests:
                yield suite


def name_of(suite: type[AdapterTests]) -> str:
    """What pytest calls a parameter."""
    return f"{suite.component}-{suite.__name__}"
