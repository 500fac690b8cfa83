"""The plugin's own test classes, collected by pytest."""

from dllm_fastdllm.conformance import (
    TestCredit,
    TestDraft,
    TestEntropy,
    TestFactor,
    TestFrechet,
    TestHierarchical,
    TestKlass,
    TestParallel,
    TestPlugin,
    TestThreshold,
    TestWINO,
)

__all__ = [
    "TestCredit",
    "TestDraft",
    "TestEntropy",
    "TestFactor",
    "TestFrechet",
    "TestHierarchical",
    "TestKlass",
    "TestParallel",
    "TestPlugin",
    "TestThreshold",
    "TestWINO",
]
