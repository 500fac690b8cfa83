"""The plugin's own test classes, collected by pytest."""

from dllm_fastdllm.conformance import TestFactor, TestFrechet, TestParallel, TestPlugin, TestThreshold

__all__ = ["TestFactor", "TestFrechet", "TestParallel", "TestPlugin", "TestThreshold"]
