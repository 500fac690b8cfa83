"""Which items are held out: decided by a stable hash of the item, never by chance or by the order of generation.

The training generator and the evaluation ask the same question of the same key, so an item is on one side for ever,
on every machine and in every Python (``hash()`` is salted per process and would not do).
"""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
HELD_OUT_ONE_IN = 10


def stable_hash(key: str) -> int:
    """The first eight bytes of SHA-256 of `key`, as an unsigned integer."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def split_of(key: str) -> Split:
    """The side on which the item named `key` lies: one key in ten is held out."""
    return "held_out" if stable_hash(f"llada-tiny/{key}") % HELD_OUT_ONE_IN == 0 else "train"
