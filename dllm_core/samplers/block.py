"""The block diffusion sampler: blocks from left to right, each looking at itself and what is in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dllm_core.config import one_of
from dllm_core.samplers.base import Sampler
from dllm_core.samplers.canvas import Canvas, completion_canvas, with_whole_blocks
from dllm_core.samplers.options import MaskedOptions
from dllm_core.samplers.view import BLOCK_CAUSAL

GRIDS = ("absolute", "completion")


@dataclass(frozen=True, kw_only=True)
class BlockOptions(MaskedOptions):
    """Options of block samplers: those of `MaskedOptions`, and the grid of the blocks.

    Args:
        block_grid: ``absolute``: blocks begin at multiples of ``block_size`` from position 0, as in training, so the
            first one that is written may hold the prompt's tail. ``completion``: the completion begins on a boundary,
            and the prompt's first block is the short one (the existing framework's left padding).
        whole_blocks: the last block of a row is computed whole, as in training, and cut to length in the end.
        cache: ``block`` keeps the keys and values of finished blocks; ``none`` computes them anew, with equal results.

    Raises:
        OptionError: as `MaskedOptions`, and an unknown grid.
    """

    block_grid: str = "absolute"
    whole_blocks: bool = False
    cache: str = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("block_grid", self.block_grid, GRIDS)


class BD3LMSampler(Sampler):
    """Generates by block diffusion: masked diffusion inside a block, autoregressive from block to block.

    Infilling is defined too: blocks count from position 0, and a mask knows the text of its own block and of those in
    front of it, not what comes after.

    Example:
        >>> denoiser = dllm.load(checkpoint)
        >>> print(dllm.BD3LMSampler(denoiser, max_new_tokens=256, block_size=32).sample("12+30="))

    Source: BD3-LM (arXiv 2503.09573), algorithm 2; options as in ZHZisZZ/dllm core/samplers/bd3lm.py.
    """

    options_class: ClassVar[type[MaskedOptions]] = BlockOptions
    attention: ClassVar[str] = BLOCK_CAUSAL

    def lay_out(self, prompts: Sequence[Sequence[int]], new_tokens: Sequence[int]) -> Canvas:
        options, mask = self.options, self.denoiser.mask_token_id
        canvas = completion_canvas(prompts, new_tokens, options.block_size, mask, options.block_grid)
        if options.whole_blocks and options.block_size is not None:  # None: every row is one block, as long as it is
            return with_whole_blocks(canvas, self.denoiser.context_length)
        return canvas
