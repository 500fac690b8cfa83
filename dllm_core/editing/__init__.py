"""Editing a text with a sampler that inserts, deletes and substitutes: what is not edited comes from the original.

`Draft` ties tokens to the characters that they stand for, `EditSession` runs a sampler on one, `EditLog` says what
happened and can be replayed and undone, `unified_diff` makes a patch of it.
"""

from dllm_core.editing.draft import Draft, Span, line_span, tokenized
from dllm_core.editing.log import EditLog, read_log, replay, undo, write_log
from dllm_core.editing.patch import unified_diff
from dllm_core.editing.session import Edited, EditSession, Layout, lay_out

__all__ = [
    "Draft",
    "EditLog",
    "EditSession",
    "Edited",
    "Layout",
    "Span",
    "lay_out",
    "line_span",
    "read_log",
    "replay",
    "tokenized",
    "undo",
    "unified_diff",
    "write_log",
]
