"""The plugin's own test classes, collected by pytest."""

from dllm_dream.conformance import TestAdapter, TestPlugin

__all__ = ["TestAdapter", "TestPlugin"]
