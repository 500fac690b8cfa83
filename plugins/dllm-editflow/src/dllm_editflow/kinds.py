"""The words that everything here shares: the kinds of edits, and what an alignment puts where no token stands."""

from __future__ import annotations

BLANK = -1  # in a column of an alignment: no token on this side
COLUMN_PADDING = -2  # behind the last column of a row; on both sides, so it is never an edit

SUBSTITUTE, DELETE, INSERT = 0, 1, 2  # the order of a model's rates, as published
KINDS = ("substitute", "delete", "insert")
