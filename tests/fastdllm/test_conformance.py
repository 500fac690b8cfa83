"""The plugin's own test classes, collected by pytest."""

from dllm_fastdllm.conformance import (
    TestCredit,
    TestEntropy,
    TestFactor,
    TestFrechet,
    TestHierarchical,
    TestKlass,
    TestParallel,
    TestPlugin,
    TestThreshold,
)

__all__ = [
    "TestCredit",
    "TestEntropy",
    "TestFactor",
    "TestFrechet",
    "TestHierarchical",
    "TestKlass",
    "TestParallel",
    "TestPlugin",
    "TestThreshold",
]
