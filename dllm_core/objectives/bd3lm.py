"""The block diffusion objective: every block is denoised given the clean blocks before it, all in one pass.

The model reads [x_t ; x_0], noised and clean, under a three-part mask; only the noised half is scored. Block size 1 is
autoregression, one block is masked diffusion.

Source: Arriola et al., "Block Diffusion", arXiv:2503.09573, equation 8 and section 3.1; ZHZisZZ/dllm at ca17675,
dllm/core/trainers/bd3lm.py, whose figures are reproduced (it draws one time a sequence).

Shapes: B batch, L length, N hidden tokens of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from dllm_core.config import at_least, one_of
from dllm_core.errors import DataError, OptionError
from dllm_core.models.attention import attention_from, block_diffusion_mask, even_block_diffusion
from dllm_core.noise.corruption import Corruption, mask_tokens, sample_segment_times
from dllm_core.noise.schedules import get_schedule
from dllm_core.objectives.base import (
    NO_DOCUMENT,
    Batch,
    attended_positions,
    document_positions,
    maskable_positions,
)
from dllm_core.objectives.cross_entropy import masked_nll
from dllm_core.objectives.mdlm import MDLMObjective

if TYPE_CHECKING:
    from dllm_core.models.denoiser import Denoiser

TIMES = ("block", "sequence")


@dataclass(frozen=True, kw_only=True)
class BD3LMObjective(MDLMObjective):
    """Block diffusion; `MDLMObjective` with blocks.

    Args:
        block_size: positions of a block, counted from the start of each sequence or packed document.
        time_per: draw a diffusion time for each ``block`` (the paper) or one a ``sequence`` (the existing framework).
        low_discrepancy: spread the times of a batch evenly.
        noise_range: lowest and highest diffusion time in training, for less variance (the paper's clipped schedules);
            evaluation always takes all of it. ``time_epsilon`` cuts off the lower end too.

    Raises:
        OptionError: an option out of range.
    """

    needs: ClassVar[tuple[str, ...]] = ("supports_block_causal",)

    block_size: int = 32
    time_per: str = "block"
    low_discrepancy: bool = False
    noise_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("block_size", self.block_size, 1)
        one_of("time_per", self.time_per, TIMES)
        range_ = tuple(self.noise_range)
        if len(range_) != 2 or not 0 <= range_[0] < range_[1] <= 1 or range_[1] <= self.time_epsilon:
            raise OptionError(
                f"noise_range must be two times, 0 <= low < high <= 1, above time_epsilon; got {self.noise_range}"
            )
        object.__setattr__(self, "noise_range", range_)

    def corrupt(self, batch: Batch, denoiser: Denoiser, *, generator: torch.Generator) -> Corruption:
        """Draw a time for each block (or sequence), then hide each token to learn with the schedule's probability."""
        ids, segments = batch["input_ids"], self._segments(batch)
        time = sample_segment_times(
            segments,
            low=max(self.noise_range[0], self.time_epsilon),
            high=self.noise_range[1],
            low_discrepancy=self.low_discrepancy,
            generator=generator,
        )
        if segments.shape[1] == 1:
            time = time[:, 0]  # (B,)
        maskable = maskable_positions(batch)
        return mask_tokens(ids, maskable, denoiser.mask_token_id, time, get_schedule(self.schedule), generator)

    def token_nll(self, denoiser: Denoiser, batch: Batch, corruption: Corruption, masked: Tensor) -> Tensor:
        """-log p(token) in nats of every hidden token, given the clean blocks before its own; (N,)."""
        clean = batch["input_ids"]
        places = _places(batch)
        return masked_nll(
            denoiser,
            torch.cat([corruption.input_ids, clean], 1),  # (B, 2 L)
            None,
            torch.cat([masked, torch.zeros_like(masked)], 1),
            torch.cat([clean, clean], 1),
            position_ids=torch.cat([places, places], 1),
            attention=self._attention(batch, places, denoiser.attention_implementation),
        )

    def check_batch(self, batch: Batch) -> None:
        """Only whole blocks: a short one at the end would tell that the text ends there, which sampling cannot know.

        Raises:
            DataError: the length of a row, or of a packed document, is no multiple of the block size.
        """
        lengths = _lengths(batch)
        short = lengths[lengths % self.block_size != 0]
        if len(short):
            raise DataError(
                f"a text of the batch is {int(short[0])} tokens long, no multiple of block_size={self.block_size}; end "
                "texts with whole blocks: data.collators: [append_eos_block] (AppendEOSBlockWrapper), or "
                f"data.learn_padding with data.pad_to_multiple_of={self.block_size}"
            )

    def for_evaluation(self) -> BD3LMObjective:
        """Without the clipped noise range, which would not measure the bound."""
        return replace(self, noise_range=(0.0, 1.0))

    def _attention(self, batch: Batch, places: Tensor, implementation: str | None) -> Tensor | BlockMask:
        """The three-part mask over [x_t ; x_0]."""
        real, device = attended_positions(batch), places.device
        rows, length = places.shape
        if real is None:
            return even_block_diffusion(length, self.block_size, implementation, device)
        documents = batch.get("document_ids", torch.zeros_like(places)).masked_fill(~real, NO_DOCUMENT)
        mask = block_diffusion_mask(places // self.block_size, documents)
        return attention_from(
            mask, rows=rows, queries=2 * length, keys=2 * length, implementation=implementation, device=device
        )

    def _segments(self, batch: Batch) -> Tensor:
        """Which tokens share a time, counted from 0 in each row; (B, L) int64, or (B, 1) where all of a row do."""
        places, documents = _places(batch), batch.get("document_ids")
        own = torch.zeros_like(places) if documents is None else documents.clamp(min=0)
        if self.time_per == "sequence":
            return own[:, :1] if documents is None else own
        begins = torch.zeros_like(places, dtype=torch.bool)
        blocks = places // self.block_size
        begins[:, 1:] = (blocks[:, 1:] != blocks[:, :-1]) | (own[:, 1:] != own[:, :-1])
        return begins.cumsum(1)


def _places(batch: Batch) -> Tensor:
    """The position of each token within its sequence or packed document; (B, L) int64."""
    ids, documents = batch["input_ids"], batch.get("document_ids")
    if documents is not None:
        return document_positions(documents)
    real = attended_positions(batch)
    if real is None:
        return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return (real.long().cumsum(1) - 1).clamp(min=0)


def _lengths(batch: Batch) -> Tensor:
    """The number of real tokens of each row, or of each packed document; (B,) or (documents,) int64."""
    ids, real, documents = batch["input_ids"], attended_positions(batch), batch.get("document_ids")
    if real is None:
        return torch.tensor([ids.shape[1]])
    if documents is None:
        return real.sum(1)
    counts = torch.zeros_like(documents).scatter_add(1, documents.clamp(min=0), real.long())  # (B, L) by document
    return counts[counts > 0]
