"""Masking: which tokens a diffusion time hides. Pure functions; all randomness comes from the generator given.

Shapes: B batch, L length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_core.noise.schedules import Schedule


@dataclass(frozen=True, kw_only=True, eq=False)
class Corruption:
    """A noised batch and how it came about: everything random that a loss needs.

    Args:
        input_ids: (B, L) int64, the mask token where ``masked``.
        masked: (B, L) bool, True = hidden, to be predicted.
        time: (B,) float, the diffusion time of each sequence; or (B, L), of each token, where blocks or packed
            documents have times of their own.
    """

    input_ids: Tensor
    masked: Tensor
    time: Tensor


def sample_time(count: int, *, epsilon: float, generator: torch.Generator) -> Tensor:
    """One time a sequence, ``epsilon + (1 - epsilon) U``; (B,) float32 on the generator's device.

    The lower end is cut off because the weight 1 / t has no bound there.
    Source: ZHZisZZ/dllm at ca17675, dllm/core/trainers/mdlm.py, compute_loss.
    """
    draws = torch.rand(count, generator=generator, device=generator.device)
    return epsilon + (1 - epsilon) * draws


def sample_segment_times(
    segments: Tensor, *, low: float, high: float, low_discrepancy: bool, generator: torch.Generator
) -> Tensor:
    """One time in [low, high] a segment, at every token of it; (B, L) float32 on the generator's device.

    With ``low_discrepancy`` the times of a batch are spread evenly: one in each of as many equal strata as there are
    segments, in random order, so that each segment's own time stays uniform (a fixed order would tie the time to the
    place in the sequence).

    Args:
        segments: (B, L) int64, number of the segment that each token belongs to, from 0 in every row.

    Source: BD3-LM, arXiv:2503.09573, section 5 (low-discrepancy sampling; clipped noise ranges); Kingma et al.,
    arXiv:2107.00630, appendix I.1.
    """
    rows, count = len(segments), int(segments.max()) + 1
    draws = torch.rand(rows, count, generator=generator, device=generator.device)
    if low_discrepancy:
        strata = torch.randperm(rows * count, generator=generator, device=generator.device).view(rows, count)
        draws = (strata + draws) / (rows * count)
    return (low + (high - low) * draws).gather(1, segments.to(generator.device))


def per_token(value: Tensor) -> Tensor:
    """(B,) as (B, 1), which broadcasts over the tokens of a row; (B, L) as it is."""
    return value[:, None] if value.dim() == 1 else value


def masked_where(draws: Tensor, time: Tensor, schedule: Schedule) -> Tensor:
    """Where uniform draws (B, L) fall below the mask probability 1 - alpha(time); time (B,) or (B, L). (B, L) bool"""
    return draws < per_token(1 - schedule.alpha(time))


def apply_mask(input_ids: Tensor, masked: Tensor, mask_token_id: int, time: Tensor) -> Corruption:
    """Hide the tokens (B, L) where ``masked`` behind the mask token."""
    return Corruption(input_ids=input_ids.masked_fill(masked, mask_token_id), masked=masked, time=time)


def mask_tokens(
    input_ids: Tensor,
    maskable: Tensor,
    mask_token_id: int,
    time: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
) -> Corruption:
    """Hide each maskable token independently with probability 1 - alpha(time).

    Args:
        input_ids: (B, L) int64.
        maskable: (B, L) bool; elsewhere nothing is ever hidden.
        mask_token_id: the token to hide behind.
        time: (B,) or (B, L) float in [0, 1].
        schedule: gives the mask probability.
        generator: the only source of randomness; (B, L) uniform draws are taken on its device.

    Source: Sahoo et al., arXiv:2406.07524, section 3 (the forward process that absorbs into the mask).
    """
    draws = torch.rand(input_ids.shape, generator=generator, device=generator.device).to(input_ids.device)
    time = time.to(input_ids.device)
    return apply_mask(input_ids, masked_where(draws, time, schedule) & maskable, mask_token_id, time)
