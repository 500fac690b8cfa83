"""The log-likelihood of a given text, by Monte Carlo over masks, and whether greedy decoding would write it.

A masked diffusion model bounds log p(target | prefix) from below by the expected log-probability of the target in a
random order. A random number of target tokens is masked, and each masked token's log-probability counts for
target length / number of masks. Masking exactly so many tokens, instead of each with that probability, has the same
expectation and less variance.

Source: LLaDA (arXiv 2502.09992), equation 6; ML-GSAI/LLaDA get_log_likelihood.py and eval_llada.py.

Shapes: B batch of masked copies, P prefix length, T target length, L = P + T, V vocabulary, N masked tokens in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_core.config import at_least
from dllm_core.errors import PromptError
from dllm_core.models import Denoiser
from dllm_core.samplers import BD3LMSampler, MDLMSampler
from dllm_core.samplers.proposals import guided

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from dllm_core.samplers.base import Sampler

Tokens = Sequence[int] | Tensor


@torch.no_grad()
def loglikelihood(
    denoiser: Denoiser,
    prefix: Tokens,
    target: Tokens,
    *,
    mc_num: int = 128,
    batch_size: int = 32,
    guidance_scale: float = 0.0,
    seed: int = 0,
) -> float:
    """Estimate the lower bound of log p(target | prefix), in nats.

    Args:
        prefix: (P,) token ids, may be empty.
        target: (T,) token ids, T at least 1.
        mc_num: how many masked copies to average over.
        batch_size: how many of them go through the model at once.
        guidance_scale: classifier-free guidance s, un + (s + 1)(cond - un), with the prefix masked in ``un``.
        seed: the same seed gives the same masks, on every device.

    Raises:
        OptionError: ``mc_num`` or ``batch_size`` below 1.
        PromptError: an empty target, mask tokens or numbers that are no ids in either part, or more tokens than the
            context holds.
    """
    at_least("mc_num", mc_num, 1)
    at_least("batch_size", batch_size, 1)
    prefix, target = checked_text(denoiser, prefix, target)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64, device=denoiser.device)
    for done in range(0, mc_num, batch_size):
        copies = min(batch_size, mc_num - done)
        noisy, p_mask = draw_noise(prefix, target, copies, denoiser.mask_token_id, generator)
        total += copies * masked_loglikelihood(denoiser, prefix, target, noisy, p_mask, guidance_scale)
    return float(total) / mc_num


def draw_noise(
    prefix: Tensor, target: Tensor, batch: int, mask_token_id: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Copies of prefix and target in which random target tokens are masked.

    The numbers of masks are stratified: spread evenly over 1 ... T from a random start, so that each alone is uniform.
    The published code rounds half to even where this rounds down, and thereby leaves out some numbers (T = 3, B = 2).

    Args:
        prefix, target: (P,) and (T,) int64, on one device.
        batch: B.
        generator: the only source of randomness; draws are made on its device.

    Returns:
        The copies (B, L) int64, and the share of target tokens that is masked (B, 1) float64.
    """
    length, device = len(target), generator.device
    start = torch.randint(length, (), generator=generator, device=device)
    spread = torch.arange(batch, device=device) * length // batch
    masks = (start + spread) % length + 1  # (B,)
    ranks = torch.rand(batch, length, generator=generator, device=device).argsort(1).argsort(1)
    masked = (ranks < masks[:, None]).to(target.device)  # (B, T)
    noisy_target = torch.where(masked, mask_token_id, target)
    noisy = torch.cat([prefix.expand(batch, -1), noisy_target], 1)
    return noisy, (masks[:, None].double() / length).to(target.device)


def masked_loglikelihood(
    denoiser: Denoiser, prefix: Tensor, target: Tensor, noisy: Tensor, p_mask: Tensor, guidance_scale: float = 0.0
) -> Tensor:
    """The estimate from given noise: masked tokens' log-probabilities over ``p_mask``, averaged over the copies.

    Only masked positions are projected through the vocabulary head. Gradients flow.

    Args:
        prefix, target: (P,) and (T,) int64, the clean tokens.
        noisy: (B, L) int64, the mask token in place of some target tokens.
        p_mask: (B, 1) or (B, L), the probability with which each token was masked.

    Returns:
        A scalar, float64, in nats.
    """
    clean = torch.cat([prefix, target]).expand_as(noisy)
    given = (torch.arange(noisy.shape[1], device=noisy.device) < len(prefix)).expand_as(noisy)
    masked = (noisy == denoiser.mask_token_id) & ~given
    logits = masked_logits(denoiser, noisy, masked, given, guidance_scale)  # (N, V)
    nll = F.cross_entropy(logits, clean[masked], reduction="none").double()
    return -(nll / p_mask.expand_as(noisy)[masked]).sum() / len(noisy)


@torch.no_grad()
def is_greedy(
    denoiser: Denoiser,
    prefix: Tokens,
    target: Tokens,
    *,
    guidance_scale: float = 0.0,
    block_size: int | None = None,
) -> bool:
    """Whether greedy decoding, one token a step, writes exactly this target after this prefix.

    Args:
        block_size: of a block-diffusion model, whose block sampler writes then; None: the masked sampler.

    Raises:
        PromptError: as `loglikelihood`.
    """
    return are_greedy(denoiser, [(prefix, target)], guidance_scale=guidance_scale, block_size=block_size)[0]


@torch.no_grad()
def are_greedy(
    denoiser: Denoiser,
    texts: Sequence[tuple[Tokens, Tokens]],
    *,
    guidance_scale: float = 0.0,
    block_size: int | None = None,
) -> list[bool]:
    """`is_greedy` of each pair (prefix, target), all in one batch.

    Targets of one length behind one prefix share a canvas. Most fail at the first token, so the rest is filled alone.

    Args:
        texts: as many as one batch holds.
        guidance_scale, block_size: as of `is_greedy`.

    Raises:
        PromptError: as `loglikelihood`.
    """
    wanted = {number: torch.cat(checked_text(denoiser, *text)).cpu() for number, text in enumerate(texts)}
    begun: dict[tuple[int, ...], list[int]] = {}
    for number, (prefix, target) in enumerate(texts):
        given = wanted[number][: len(prefix)].tolist()
        begun.setdefault((*given, *[denoiser.mask_token_id] * len(target)), []).append(number)
    sampler_class = MDLMSampler if block_size is None else BD3LMSampler
    sampler = sampler_class(denoiser, block_size=block_size, guidance_scale=guidance_scale)
    right, begun = _still_right(sampler, begun, wanted, steps=1)
    right |= _still_right(sampler, begun, wanted, steps=None)[0]
    return [number in right for number in range(len(texts))]


def _still_right(
    sampler: Sampler, begun: Mapping[tuple[int, ...], Sequence[int]], wanted: Mapping[int, Tensor], steps: int | None
) -> tuple[set[int], dict[tuple[int, ...], list[int]]]:
    """Fill canvases, and see which texts agree with what was written.

    Args:
        begun: canvas -> numbers of the texts that it may become.
        wanted: number -> text (L,).
        steps: at most so many; None: until all are done or wrong.

    Returns:
        The numbers of texts that were written to their end; canvases with masks left, with those that they may become.
    """
    if not begun:
        return set(), {}
    left = [list(numbers) for numbers in begun.values()]
    masks = [canvas.count(sampler.denoiser.mask_token_id) for canvas in begun]
    # Infilling, because a prefix may be empty and a prompt may not.
    state = sampler.start_infill([list(canvas) for canvas in begun])
    while not state.finished and any(left) and (steps is None or state.index < steps):
        step = sampler.step(state)
        ids, committed = step.input_ids.cpu(), step.committed.cpu()  # (B, L)
        for row, numbers in enumerate(left):
            at = committed[row].nonzero()[:, 0]
            left[row] = [number for number in numbers if torch.equal(ids[row, at], wanted[number][at])]
            masks[row] -= len(at)
    rows = list(zip(begun, left, masks, strict=True))
    done = {number for _, numbers, open_ in rows if not open_ for number in numbers}
    return done, {canvas: numbers for canvas, numbers, open_ in rows if open_ and numbers}


def masked_logits(
    denoiser: Denoiser,
    noisy: Tensor,
    masked: Tensor,
    prefix: Tensor,
    guidance_scale: float,
    *,
    attention_mask: Tensor | None = None,
    attention: Tensor | BlockMask | None = None,
) -> Tensor:
    """Scores of the masked positions (N, V), in float32 or better; guided where ``guidance_scale`` is above 0.

    Args:
        noisy: (B, L) int64.
        masked: (B, L) bool, the positions to score.
        prefix: (B, L) bool, what the unconditional copy does not see.
        attention_mask, attention: as of `Denoiser.logits`.
    """
    if guidance_scale > 0:
        # Two calls and not one of twice the rows: a pattern may hold one row for all, or one for each.
        without = noisy.masked_fill(prefix, denoiser.mask_token_id)
        pair = [denoiser.logits(ids, attention_mask, at=masked, attention=attention) for ids in (noisy, without)]
        return guided(*pair, guidance_scale)
    logits = denoiser.logits(noisy, attention_mask, at=masked, attention=attention)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def checked_text(denoiser: Denoiser, prefix: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """Both as int64 tensors on the model's device. Raises PromptError as `loglikelihood` does."""
    prefix, target = (torch.as_tensor(ids, dtype=torch.int64, device=denoiser.device) for ids in (prefix, target))
    if not len(target):
        raise PromptError("the target is empty; give the tokens whose likelihood is asked for")
    length, context = len(prefix) + len(target), denoiser.context_length
    if context is not None and length > context:
        raise PromptError(
            f"prefix and target have {length} tokens, the model's context is {context}; shorten the prefix"
        )
    ids = torch.cat([prefix, target])
    if bool(((ids < 0) | (ids >= denoiser.vocab_size)).any()):
        raise PromptError(f"prefix or target holds what is no token id; ids run from 0 to {denoiser.vocab_size - 1}")
    if bool((ids == denoiser.mask_token_id).any()):
        raise PromptError(f"prefix or target holds the mask token (id {denoiser.mask_token_id}); give plain text")
    return prefix, target
