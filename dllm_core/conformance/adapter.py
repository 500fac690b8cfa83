"""`AdapterTests`: what every model family must hold, on a small random model of it."""

from __future__ import annotations

from dllm_core.conformance.adapter_attention import AttentionChecks
from dllm_core.conformance.adapter_files import FileChecks
from dllm_core.conformance.adapter_rows import RowChecks
from dllm_core.conformance.adapter_text import TextChecks


class AdapterTests(TextChecks, AttentionChecks, RowChecks, FileChecks):
    """The checks of a model adapter; a subclass names it and gives a small configuration.

    The attributes are those of `dllm_core.conformance.adapter_suite.AdapterSuite`.

    Example:
        >>> class TestAdapter(AdapterTests):
        ...     component = "acme/acme"
        ...
        ...     def tiny_config(self):
        ...         return AcmeConfig(vocab_size=50, hidden_size=32, num_layers=2, max_position_embeddings=64)
    """
