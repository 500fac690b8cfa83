"""Propose: from the logits of the open positions to one token and one confidence for each.

Pure functions. Confidence is measured in float32 and, unless an option says otherwise, before temperature, so that a
low temperature does not tie confidences and turn any-order decoding into left-to-right (DreamLM/Dream issue 72). The
mask token counts in the distribution, as published, but is never chosen.

Shapes: B rows, M open positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dllm_core.samplers.options import MaskedOptions
from dllm_core.samplers.statistics import measure


@dataclass(frozen=True)
class Proposal:
    """What could be written at each open position.

    Args:
        tokens: (B, M) int64.
        confidence: (B, M) float32, higher is surer; -inf for tokens whose confidence is suppressed.
        priority: (B, M), what a quota ranks by: the confidence, or a draw from it.
        entropy: (B, M) float32 in nats, of the tokens that can be written; inf where confidence is suppressed.
        best_two: (B, M, 2) float32, the two highest probabilities.
        log_probs: (B, M, V) float32, the whole distributions.
        places: (B, M) int64, where each position stands in its row's block, from 0; filler stands behind the block.
        history: what the commit rule keeps of the block's earlier steps (`CommitRule.remember`).

    The last five are None unless the commit rule declares that it needs them.
    """

    tokens: torch.Tensor
    confidence: torch.Tensor
    priority: torch.Tensor
    entropy: torch.Tensor | None = None
    best_two: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    places: torch.Tensor | None = None
    history: object | None = None


@dataclass(frozen=True)
class Draws:
    """Uniform float64 numbers of this step, (B, M) each; None where nothing is drawn."""

    token: torch.Tensor | None
    confidence: torch.Tensor | None
    priority: torch.Tensor | None


def propose(
    logits: torch.Tensor, mask_token_id: int, options: MaskedOptions, draws: Draws, needs: Sequence[str] = ()
) -> Proposal:
    """One token and one confidence for each position, and the statistics that the commit rule ``needs``.

    ``logits`` (B, M, V) is used up.
    """
    logits = logits.float()
    _forbid(logits, options.suppress_tokens)
    if options.top_k is not None or options.top_p is not None:
        logits = _keep_top(logits, mask_token_id, options)
    tokens = _choose(logits, mask_token_id, options.temperature, draws.token)
    _forbid(logits, options.suppress_confidence_tokens)
    scores = _measured(logits, options)
    confidence = _confidence(scores, tokens, options.confidence, draws.confidence)
    for token in options.suppress_confidence_tokens:  # last by every kind of confidence, and whatever is drawn
        confidence = confidence.masked_fill(tokens == token, -torch.inf)
    priority = _priority(confidence, options.confidence_temperature, draws.priority)
    return Proposal(tokens, confidence, priority, **_statistics(scores, confidence, mask_token_id, needs))


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance, un + (s + 1)(cond - un). Source: LLaDA (arXiv 2502.09992), generate.py."""
    conditional, unconditional = conditional.float(), unconditional.float()  # the scale would enlarge rounding errors
    return unconditional + (scale + 1) * (conditional - unconditional)


def without_borrowed_lead(proposal: Proposal, slots: torch.Tensor, masked: torch.Tensor) -> Proposal:
    """Position 0 of a shifted model borrows position 1's scores, so the two tie; where they lead, 1 goes first.

    Everywhere else ties go to the left. The published code leaves the tie to torch.topk, which comes to the same.

    Args:
        slots: (B, M) int64, the open positions.
        masked: (B, M) bool; False marks filler, which leads nobody.
    """
    priority = proposal.priority
    best = priority.masked_fill(~masked, -torch.inf).amax(1, keepdim=True)
    leads = (slots == 0) & (priority == best)
    lowered = torch.nextafter(priority, torch.full_like(priority, -torch.inf))
    return replace(proposal, priority=torch.where(leads, lowered, priority))


def _forbid(logits: torch.Tensor, ids: Sequence[int]) -> None:
    for token in ids:
        logits[..., token] = -torch.inf


def _choose(logits: torch.Tensor, mask_token_id: int, temperature: float, draw: torch.Tensor | None) -> torch.Tensor:
    """The best token, or one drawn from softmax(logits / temperature); never the mask token. -> (B, M)"""
    mask_score = logits[..., mask_token_id].clone()
    logits[..., mask_token_id] = -torch.inf
    # max, not argmax: over a large vocabulary on the CPU it takes half the time (5.4 against 12.1 ms for 32 x 126,464).
    tokens = logits.max(-1).indices if draw is None else _draw(logits, temperature, draw)
    logits[..., mask_token_id] = mask_score
    return tokens


def _draw(logits: torch.Tensor, temperature: float, draw: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution: one uniform number a position gives what Gumbel-max gives from V of them.

    float64, because half precision here lowers quality (arXiv 2409.02908).
    """
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)  # (B, M, V)
    threshold = draw[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _keep_top(logits: torch.Tensor, mask_token_id: int, options: MaskedOptions) -> torch.Tensor:
    """-inf outside the nucleus and the k best; at least one token besides the mask token stays."""
    keep = torch.ones_like(logits, dtype=torch.bool)
    if options.top_p is not None:
        tempered = logits / options.temperature if options.temperature > 0 else logits
        ordered, order = tempered.sort(-1, descending=True)  # (B, M, V)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)  # the mass in front of each token
        before[..., 0] = 0
        keep.scatter_(-1, order, before <= options.top_p)
    if options.top_k is not None:
        keep &= logits >= logits.topk(min(options.top_k, logits.shape[-1]), -1).values[..., -1:]
    masked = torch.arange(logits.shape[-1], device=logits.device) == mask_token_id
    best = logits.masked_fill(masked, -torch.inf).argmax(-1, True)
    return logits.masked_fill(~keep.scatter(-1, best, True), -torch.inf)


def _measured(logits: torch.Tensor, options: MaskedOptions) -> torch.Tensor:
    """The logits (B, M, V) of the distribution that confidence is measured on.

    Source of ``sampling``: Dream-org/Dream-v0-Base-7B, generation_utils.py, sample_tokens.
    """
    if options.confidence_distribution == "sampling" and options.temperature > 0:
        return (logits - logits.amax(-1, keepdim=True)) / options.temperature  # below 0: a tiny T must not overflow
    return logits


def _confidence(logits: torch.Tensor, tokens: torch.Tensor, kind: str, draw: torch.Tensor | None) -> torch.Tensor:
    """How sure the model is of each position, (B, M); the kinds are those of `MaskedOptions.confidence`."""
    if kind == "random":
        return draw.float()
    # Not exp(logit - logsumexp), which rounds whatever is nearly sure to 1, where it ties.
    probabilities = logits.softmax(-1)
    if kind == "probability":
        return probabilities.gather(-1, tokens[..., None]).squeeze(-1)
    if kind == "margin":
        best = probabilities.topk(2, -1).values
        return best[..., 0] - best[..., 1]
    return -torch.special.entr(probabilities).sum(-1)


def _statistics(
    scores: torch.Tensor, confidence: torch.Tensor, mask_token_id: int, needs: Sequence[str]
) -> dict[str, torch.Tensor]:
    measured = measure(scores, mask_token_id, needs)
    if "entropy" in measured:  # what ranks last by confidence ranks last by entropy too
        measured["entropy"] = measured["entropy"].masked_fill(confidence == -torch.inf, torch.inf)
    return measured


def _priority(confidence: torch.Tensor, temperature: float, draw: torch.Tensor | None) -> torch.Tensor:
    """Ranking by confidence / T plus Gumbel noise draws positions from softmax(confidence / T) without replacement."""
    if draw is None:
        return confidence
    return confidence.double() / temperature - (-draw.log()).log()
