"""What people look at: the live view of a canvas on the terminal, and the styled text that it is made of."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_core.display.live import LiveView, Row
    from dllm_core.display.text import Age, Glyphs, TokenText, canvas_text, glyphs_for, progress_text

_EXPORTS = {
    "LiveView": "dllm_core.display.live",
    "Row": "dllm_core.display.live",
    "Age": "dllm_core.display.text",
    "Glyphs": "dllm_core.display.text",
    "TokenText": "dllm_core.display.text",
    "canvas_text": "dllm_core.display.text",
    "glyphs_for": "dllm_core.display.text",
    "progress_text": "dllm_core.display.text",
}

__all__ = [
    "Age",
    "Glyphs",
    "LiveView",
    "Row",
    "TokenText",
    "canvas_text",
    "glyphs_for",
    "progress_text",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
