"""What commit rules may ask to be measured beside the confidence; only what a rule declares is computed.

Shapes: B rows, M open positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

STATISTICS = ("entropy", "best_two", "log_probs")
NEEDS = (*STATISTICS, "places", "history")
NOTHING = -1e4  # a log probability whose exponential is 0 in every precision


def measure(scores: torch.Tensor, mask_token_id: int, needs: Sequence[str]) -> dict[str, torch.Tensor]:
    """Each declared statistic of the distributions that confidence is measured on, by name.

    Args:
        scores: (B, M, V) float32, unnormalised log probabilities.
        mask_token_id: it can never be written, so how likely it is makes no choice less certain.
        needs: names out of `NEEDS`; those that are not measured here are passed over.

    Returns:
        ``entropy`` (B, M) in nats, of the tokens that can be written; ``best_two`` (B, M, 2), the two highest
        probabilities, the higher one first; ``log_probs`` (B, M, V).
    """
    measures: dict[str, Callable[[], torch.Tensor]] = {
        "entropy": lambda: _entropy(scores, mask_token_id),
        "best_two": lambda: scores.log_softmax(-1).topk(2, -1).values.exp(),
        "log_probs": lambda: scores.log_softmax(-1),
    }
    return {name: measures[name]() for name in STATISTICS if name in needs}


def _entropy(scores: torch.Tensor, mask_token_id: int) -> torch.Tensor:
    masked = torch.arange(scores.shape[-1], device=scores.device) == mask_token_id
    logs = scores.masked_fill(masked, -torch.inf).log_softmax(-1)
    # Twice as fast as entr over a large vocabulary on the CPU; the bound keeps 0 * -inf from being nan.
    return (logs.exp() * logs.clamp(min=NOTHING)).sum(-1).neg_()
