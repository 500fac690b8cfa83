"""The plugin's own test classes, collected by pytest."""

from dllm_dream.conformance import TestAdapter, TestDream, TestEntropy, TestOrigin, TestPlugin, TestTopkMargin

__all__ = ["TestAdapter", "TestDream", "TestEntropy", "TestOrigin", "TestPlugin", "TestTopkMargin"]
