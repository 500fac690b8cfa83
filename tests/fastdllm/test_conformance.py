"""The plugin's own test classes, collected by pytest."""

from dllm_fastdllm.conformance import (
    TestCredit,
    TestDraft,
    TestDual,
    TestEntropy,
    TestFactor,
    TestFrechet,
    TestHierarchical,
    TestKlass,
    TestLoPA,
    TestParallel,
    TestPlugin,
    TestPrefix,
    TestThreshold,
    TestWINO,
)

__all__ = [
    "TestCredit",
    "TestDraft",
    "TestDual",
    "TestEntropy",
    "TestFactor",
    "TestFrechet",
    "TestHierarchical",
    "TestKlass",
    "TestLoPA",
    "TestParallel",
    "TestPlugin",
    "TestPrefix",
    "TestThreshold",
    "TestWINO",
]
