"""Keep a finished block only some steps after it was finished, and never compute it again."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_core.config import at_least
from dllm_fastdllm.caches.window import Place, WindowPolicy


@dataclass(frozen=True, kw_only=True)
class Delayed(WindowPolicy):
    """Keeps the prompt after the first steps, and each finished block after the first steps of the next one.

    Everything behind what is kept is computed at every step. No refresh of its own: `refresh_every` adds them.

    Args:
        delay: steps of the next block in which a finished block is still computed, at least 1: what it is computed
            last, all of its tokens stand. A next block with fewer steps ends the wait.

    Raises:
        OptionError: a value out of range.

    Source: d3LLM (arXiv 2601.07568), delayed KV cache with a wait of 2 forward passes; the delay itself: dKV-Cache
    (arXiv 2505.15781). There the wait is counted in passes whatever the block, here within the next block, so that
    a row does not depend on how many steps the others of its batch take.
    """

    delay: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("delay", self.delay, 1)

    def window(self, step: int, place: Place) -> tuple[int, int]:
        if self.refreshes(step):
            return 0, place.length
        return (place.previous if step < self.delay else place.start), place.length
