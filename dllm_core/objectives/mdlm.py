"""The masked diffusion objective: hide tokens at a random rate, predict them, weigh by the schedule.

Source: Sahoo et al., arXiv:2406.07524, equation 10; Nie et al., "Large Language Diffusion Models", arXiv:2502.09992,
equation 3; ZHZisZZ/dllm at ca17675, dllm/core/trainers/mdlm.py, whose figures are reproduced.

Shapes: B batch, L length, N hidden tokens of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dllm_core.config import one_of
from dllm_core.errors import OptionError
from dllm_core.noise.corruption import Corruption, mask_tokens, sample_time
from dllm_core.noise.schedules import Schedule, get_schedule
from dllm_core.objectives.base import Batch, Objective, ObjectiveOutput, attended_positions, maskable_positions
from dllm_core.objectives.cross_entropy import masked_nll
from dllm_core.objectives.weighting import get_weighting, schedule_weights

if TYPE_CHECKING:
    from dllm_core.models.denoiser import Denoiser

NORMALIZATIONS = ("token", "sequence", "batch")


@dataclass(frozen=True, kw_only=True)
class MDLMObjective(Objective):
    """Masked diffusion.

    Args:
        schedule: name of the noise schedule, or an instance.
        weighting: ``schedule`` (the bound), ``uniform``, or any registered one.
        normalization: what the sum over hidden tokens is divided by: the number of tokens to learn (``token``), that
            number in each sequence times the number of sequences (``sequence``), the number of sequences (``batch``).
        time_epsilon: the lowest diffusion time drawn, in [0, 1).

    Raises:
        OptionError: an option out of range.
    """

    schedule: str | Schedule = "linear"
    weighting: str = "schedule"
    normalization: str = "token"
    time_epsilon: float = 1e-3

    def __post_init__(self) -> None:
        get_schedule(self.schedule)
        get_weighting(self.weighting)
        one_of("normalization", self.normalization, NORMALIZATIONS)
        if not 0 <= self.time_epsilon < 1:
            raise OptionError(f"time_epsilon must be at least 0 and below 1, got {self.time_epsilon}; usual is 0.001")

    def corrupt(self, batch: Batch, denoiser: Denoiser, *, generator: torch.Generator) -> Corruption:
        """Draw one time a sequence, then hide each token to learn with the schedule's probability."""
        ids = batch["input_ids"]
        time = sample_time(len(ids), epsilon=self.time_epsilon, generator=generator)
        maskable = maskable_positions(batch)
        return mask_tokens(ids, maskable, denoiser.mask_token_id, time, get_schedule(self.schedule), generator)

    def loss(
        self, denoiser: Denoiser, batch: Batch, corruption: Corruption, *, normalizer: Tensor | None = None
    ) -> ObjectiveOutput:
        """Weighted cross-entropy of the hidden tokens; a differentiable zero where none is hidden.

        Positions that ``corruption.masked`` hides but the batch does not teach count for nothing.
        """
        maskable = maskable_positions(batch)  # (B, L)
        masked = corruption.masked & maskable
        nll = masked_nll(denoiser, corruption.input_ids, attended_positions(batch), masked, batch["input_ids"])  # (N,)
        schedule = get_schedule(self.schedule)
        weights = get_weighting(self.weighting)(schedule, corruption) * self._row_scale(maskable)
        denominator = (self.normalizer(batch) if normalizer is None else normalizer).clamp(min=1)
        tokens = maskable.sum()
        return ObjectiveOutput(
            loss=(nll * weights.expand_as(masked)[masked]).sum() / denominator,
            nll_sum=(nll * schedule_weights(schedule, corruption).expand_as(masked)[masked]).sum().detach(),
            token_count=tokens,
            metrics={"masked_fraction": masked.sum() / tokens.clamp(min=1)},
        )

    def normalizer(self, batch: Batch) -> Tensor:
        """Tokens to learn (``token``) or sequences (``sequence``, ``batch``); scalar int64."""
        if self.normalization == "token":
            return maskable_positions(batch).sum()
        ids = batch["input_ids"]
        return torch.tensor(len(ids), device=ids.device)

    def _row_scale(self, maskable: Tensor) -> Tensor:
        """What each row is multiplied by before the sum; (B, 1)."""
        counts = maskable.sum(1, keepdim=True)
        return 1 / counts.clamp(min=1) if self.normalization == "sequence" else torch.ones_like(counts)
