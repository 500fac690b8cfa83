"""Data: which data a script uses, and how examples are prepared."""

from __future__ import annotations

from dllm_core.data.arguments import DataArguments

__all__ = ["DataArguments"]
