"""Keep what is in front of the block; compute the block and all masks behind it at every step."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_fastdllm.caches.window import Place, WindowPolicy


@dataclass(frozen=True, kw_only=True)
class Prefix(WindowPolicy):
    """Refreshes at the start of a block; after that the keys and values in front of it stay as they are.

    Exact at the first step of each block.

    Source: Fast-dLLM (arXiv 2505.22618), section 3.2, prefix cache; NVlabs/Fast-dLLM generate_with_prefix_cache.
    """

    def window(self, step: int, place: Place) -> tuple[int, int]:
        return (0 if step == 0 or self.refreshes(step) else place.start), place.length
