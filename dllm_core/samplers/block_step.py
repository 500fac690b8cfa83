"""One step inside a block as one pure function of static shapes: block forward, proposal, commit, "is it done".

Nothing in it asks the device for a value or depends on one, so it compiles without a graph break and a CUDA graph can
capture it, once per (rows, block size, slots that are read). The host reads one flag a step. Only for steps that
compute the block and nothing else, over a cache that holds the rest; opening a block is not part of it.

Shapes: R rows, K block size, S slots of the cache that are read, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dllm_core.errors import OptionError
from dllm_core.models.cache import BlockCache
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers.commit import CommitRule
from dllm_core.samplers.options import MaskedOptions
from dllm_core.samplers.proposals import Draws, propose


@dataclass(frozen=True)
class BlockPlace:
    """Where the rows' blocks stand; the same tensors for all steps of a block.

    Args:
        positions: (R, K) int64; behind the end of a row's block any position of the row.
        valid: (R, K) bool, False behind that end.
        attention: (R, 1, K, S) bool, who may look at whom.
    """

    positions: torch.Tensor
    valid: torch.Tensor
    attention: torch.Tensor


class Stepped(NamedTuple):
    """What a step leaves.

    Args:
        tokens: (R, K) int64, the block.
        is_done: () bool, whether no row has a mask left in it.
    """

    tokens: torch.Tensor
    is_done: torch.Tensor


StepFunction = Callable[[torch.Tensor, BlockPlace, torch.Tensor], Stepped]
"""(tokens (R, K), place, quota (R,)) -> `Stepped`."""


def block_step(denoiser: Denoiser, rule: CommitRule, options: MaskedOptions, cache: BlockCache) -> StepFunction:
    """The step of a greedy sampler with that rule, to be compiled or captured.

    ``cache.place(slots, stop)`` comes before the first call for a block; it says where the block's keys and values go.

    Raises:
        OptionError: the options draw random numbers, the rule keeps a history, or the logits are shifted: these steps
            need what `Sampler.step` carries from one to the next.
    """
    check_options(denoiser, rule, options)
    nothing_drawn = Draws(None, None, None)
    mask = denoiser.mask_token_id

    def step(tokens: torch.Tensor, place: BlockPlace, quota: torch.Tensor) -> Stepped:
        logits = denoiser.logits(tokens, position_ids=place.positions, attention=place.attention, cache=cache)
        proposal = propose(logits, mask, options, nothing_drawn, rule.needs)  # (R, K) each
        commit = rule.select(proposal, (tokens == mask) & place.valid, quota)  # (R, K)
        after = torch.where(commit, proposal.tokens, tokens)
        return Stepped(after, ~((after == mask) & place.valid).any())

    return step


def check_options(denoiser: Denoiser, rule: CommitRule, options: MaskedOptions) -> None:
    """Raise OptionError where a step is no pure function of the block."""
    draws = options.temperature > 0 or options.confidence == "random" or options.confidence_temperature > 0
    if draws or options.guidance_scale > 0:
        raise OptionError("a compiled block step is greedy and unguided; set temperature and guidance_scale to 0")
    if {"history", "places"} & set(rule.needs):
        raise OptionError(f"{type(rule).__name__} keeps a history, a compiled block step does not; use another commit")
    if denoiser.logits_are_shifted:
        raise OptionError("a compiled block step needs logits that are not shifted; use the sampler's own steps")
