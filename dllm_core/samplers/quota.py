"""How many tokens each step of a block commits, from the noise schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from dllm_core.noise.schedules import get_schedule


def even_quota(masks: int, steps: int) -> tuple[int, ...]:
    """Split the masks over the steps as evenly as possible, the first ones taking the remainder.

    Source: LLaDA (arXiv 2502.09992), generate.py, get_num_transfer_tokens.
    """
    base, remainder = divmod(masks, steps)
    return tuple(base + (step < remainder) for step in range(steps) if base + (step < remainder) > 0)


def schedule_quota(
    masks: int,
    steps: int,
    schedule: str,
    draw: Callable[[int, int, float], int] | None = None,
    *,
    time_epsilon: float = 0.0,
    rounding: Callable[[float], int] = round,
    taken: int = 0,
) -> tuple[int, ...]:
    """Commits per step: the schedule's expectation, rounded, or a binomial draw from it.

    The steps divide the time from 1 to eps evenly. From time t to the next one s a masked token is revealed with
    probability 1 - (1 - alpha(s)) / (1 - alpha(t)), and what is left with certainty in the last step. Steps that would
    commit nothing are left out: the model has no time input, so they would change nothing.

    Args:
        masks: masked tokens in the block.
        steps: step budget of the block, at least 1.
        schedule: name of a registered schedule.
        draw: (step, remaining masks, probability) -> number to commit; None rounds the expectation.
        time_epsilon: eps, where the grid of times ends; below 1.
        rounding: how.
        taken: steps at the start of the grid that are not planned here.

    Returns:
        Positive counts that add up to ``masks``.

    Source: MDLM (arXiv 2406.07524), section 4; ZHZisZZ/dllm core/samplers/utils.py, get_num_transfer_tokens. Time grid
    and rounding down. Source: Dream-org/Dream-v0-Base-7B, generation_utils.py, _sample.
    """
    alpha, counts, left = get_schedule(schedule), [], masks
    for step in range(taken, steps):
        if left == 0:
            break
        t, s = (time_epsilon + (1 - time_epsilon) * (steps - k) / steps for k in (step, step + 1))
        is_last = step == steps - 1 and time_epsilon > 0
        reveal = 1.0 if is_last else 1 - alpha.reverse_mask_prob(s, t)
        count = rounding(left * reveal) if draw is None else draw(step, left, reveal)
        counts.append(min(count, left))
        left -= counts[-1]
    if left:  # a registered schedule that does not reach alpha(0) = 1
        counts.append(left)
    return tuple(count for count in counts if count > 0)


@lru_cache(maxsize=4096)
def quota_counts(
    masks: int, steps: int, kind: str, schedule: str, time_epsilon: float = 0.0, taken: int = 0
) -> tuple[int, ...]:
    """The counts of a deterministic quota; the same blocks come again and again, so they are kept."""
    if kind == "even":
        return even_quota(masks, steps)
    rounding = math.floor if kind == "floor" else round
    return schedule_quota(masks, steps, schedule, time_epsilon=time_epsilon, rounding=rounding, taken=taken)
