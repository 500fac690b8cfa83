"""BERT and ModernBERT for dllm. Importing this package imports no torch."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
