"""Keep everything but the block, in front of it and behind it; compute only the block."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_fastdllm.caches.window import Place, WindowPolicy


@dataclass(frozen=True, kw_only=True)
class Dual(WindowPolicy):
    """Refreshes at the start of a block; after that only the block's own keys and values are overwritten.

    Exact at the first step of each block.

    Source: Fast-dLLM (arXiv 2505.22618), section 3.2, dual cache; NVlabs/Fast-dLLM generate_with_dual_cache.
    """

    def window(self, step: int, place: Place) -> tuple[int, int]:
        if step == 0 or self.refreshes(step):
            return 0, place.length
        return place.start, place.stop
