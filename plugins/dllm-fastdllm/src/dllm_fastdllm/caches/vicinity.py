"""Compute the block and its neighbours: what stands next to a written token changes most."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_core.config import at_least
from dllm_fastdllm.caches.window import Place, WindowPolicy


@dataclass(frozen=True, kw_only=True)
class Vicinity(WindowPolicy):
    """Refreshes in the first steps of a block; after that computes the block and its neighbours.

    Args:
        warmup: steps at the start of each block that compute everything, at least 1.
        look_before, look_after: neighbours in front of the block and behind it, in tokens.

    Raises:
        OptionError: a value out of range.

    Source: dInfer (arXiv 2510.08666), vicinity refresh of the KV cache (``prefix_look``, ``after_look``; its
    ``cache_update_freq`` is `refresh_every` here).
    """

    warmup: int = 4
    look_before: int = 16
    look_after: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("warmup", self.warmup, 1)
        at_least("look_before", self.look_before, 0)
        at_least("look_after", self.look_after, 0)

    def window(self, step: int, place: Place) -> tuple[int, int]:
        if step < self.warmup or self.refreshes(step):
            return 0, place.length
        return max(0, place.start - self.look_before), min(place.length, place.stop + self.look_after)
