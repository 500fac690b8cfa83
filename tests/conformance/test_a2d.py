"""dllm-a2d passes the suite as it stands, each of its architectures."""

from __future__ import annotations

from dllm_a2d.conformance import (  # noqa: F401 collected here
    TestGemma,
    TestGemma3,
    TestGPT2,
    TestLlama,
    TestMistral,
    TestOlmo2,
    TestPhi3,
    TestPlugin,
    TestQwen2,
    TestQwen3,
    TestQwen3Moe,
)
