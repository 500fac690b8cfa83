"""The plugin's own test classes, collected by pytest."""

from dllm_bert.conformance import TestBert, TestModernBert, TestPlugin, TestRoberta

__all__ = ["TestBert", "TestModernBert", "TestPlugin", "TestRoberta"]
