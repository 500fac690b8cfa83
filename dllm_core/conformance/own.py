"""The test classes of the core's own components: they pass the same suite, with no special cases.

``dllm plugins check core`` and the tests of this repository run them.
"""

from __future__ import annotations

from dllm_core.conformance.suite import Suite

SUITES: list[type[Suite]] = []
