"""The sampler passes the core's suite, in each of its modes that end with no mask left."""

from dllm_editflow.conformance import TestMend, TestNextEvent, TestSurest, TestTauLeaping

__all__ = ["TestMend", "TestNextEvent", "TestSurest", "TestTauLeaping"]
