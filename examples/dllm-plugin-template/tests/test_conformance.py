"""Collects the test classes of the package."""

from dllm_plugin_template.conformance import TestPlugin, TestRule, TestSampler

__all__ = ["TestPlugin", "TestRule", "TestSampler"]
