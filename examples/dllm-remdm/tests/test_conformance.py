"""The test classes of the package, collected by pytest."""

from dllm_remdm.conformance import TestAsRegistered, TestCap, TestConf, TestLoop, TestPlugin

__all__ = ["TestAsRegistered", "TestCap", "TestConf", "TestLoop", "TestPlugin"]
