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
from dllm_core.models.attention import attention_from, document_mask
from dllm_core.noise.corruption import Corruption, mask_tokens, sample_segment_times, sample_time
from dllm_core.noise.schedules import Schedule, get_schedule
from dllm_core.objectives.base import (
    NO_DOCUMENT,
    Batch,
    Objective,
    ObjectiveOutput,
    attended_positions,
    document_positions,
    maskable_positions,
)
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
        """Draw one time a sequence (a packed document), then hide each token to learn as the schedule says."""
        ids, documents = batch["input_ids"], batch.get("document_ids")
        if documents is None:
            time = sample_time(len(ids), epsilon=self.time_epsilon, generator=generator)
        else:
            time = sample_segment_times(
                documents.clamp(min=0), low=self.time_epsilon, high=1.0, low_discrepancy=False, generator=generator
            )
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
        nll = self.token_nll(denoiser, batch, corruption, masked)  # (N,)
        schedule = get_schedule(self.schedule)
        weights = get_weighting(self.weighting)(schedule, corruption) * self._scale(batch, maskable)
        denominator = (self.normalizer(batch) if normalizer is None else normalizer).clamp(min=1)
        tokens = maskable.sum()
        return ObjectiveOutput(
            loss=(nll * weights.expand_as(masked)[masked]).sum() / denominator,
            nll_sum=(nll * schedule_weights(schedule, corruption).expand_as(masked)[masked]).sum().detach(),
            token_count=tokens,
            metrics={"masked_fraction": masked.sum() / tokens.clamp(min=1)},
        )

    def token_nll(self, denoiser: Denoiser, batch: Batch, corruption: Corruption, masked: Tensor) -> Tensor:
        """-log p(token) in nats of every hidden token, in row-major order; (N,).

        Args:
            masked: (B, L) bool, the hidden tokens that the batch teaches.
        """
        ids, documents = corruption.input_ids, batch.get("document_ids")
        if documents is None:
            return masked_nll(denoiser, ids, attended_positions(batch), masked, batch["input_ids"])
        real = attended_positions(batch)
        attention = attention_from(
            document_mask(documents.masked_fill(~real, NO_DOCUMENT)),
            rows=ids.shape[0],
            queries=ids.shape[1],
            keys=ids.shape[1],
            implementation=denoiser.attention_implementation,
            device=ids.device,
        )
        places = document_positions(documents)
        return masked_nll(denoiser, ids, None, masked, batch["input_ids"], position_ids=places, attention=attention)

    def normalizer(self, batch: Batch) -> Tensor:
        """Tokens to learn (``token``), or sequences (``sequence``, ``batch``: packed documents are each one); int64."""
        if self.normalization == "token":
            return maskable_positions(batch).sum()
        ids, documents = batch["input_ids"], batch.get("document_ids")
        if documents is not None:
            return (documents.amax(1) + 1).sum()
        return torch.tensor(len(ids), device=ids.device)

    def _scale(self, batch: Batch, maskable: Tensor) -> Tensor:
        """What each token is multiplied by before the sum; (B, 1), or (B, L) where documents are packed."""
        if self.normalization != "sequence":
            return torch.ones_like(maskable[:, :1])
        documents = batch.get("document_ids")
        if documents is None:
            return 1 / maskable.sum(1, keepdim=True).clamp(min=1)
        places = documents.clamp(min=0)
        counts = torch.zeros_like(documents).scatter_add(1, places, maskable.long())  # (B, L) by document
        return 1 / counts.clamp(min=1).gather(1, places)
