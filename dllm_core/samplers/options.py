"""Options that every masked or block sampler shares; checked once, when the sampler is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dllm_core.config import at_least, one_of, within
from dllm_core.errors import OptionError

CONFIDENCES = ("probability", "margin", "entropy", "random")
CONFIDENCE_DISTRIBUTIONS = ("model", "sampling")
COMPILED_STEPS = ("off", "auto", "eager", "compile", "cuda-graph")
QUOTAS = ("schedule", "floor", "even")


@dataclass(frozen=True, kw_only=True)
class MaskedOptions:
    """How a canvas of masks is turned into text. Names in brackets are those of the published code.

    Args:
        max_new_tokens: length of the completion canvas, in tokens. None: 128, or what the context has left.
        max_length: prompt and completion together, in tokens; takes the place of ``max_new_tokens``.
        steps: denoising steps in all; each block gets ceil(steps / blocks). None: as many as there are positions, which
            is one token a step with the linear schedule.
        steps_per_block: steps of each block; where it is given, ``steps`` counts for nothing.
        block_size: the canvas is finished block by block, from left to right. None: one block.
        schedule: ``linear``, ``cosine`` or any registered schedule; decides how many tokens each step commits.
        quota: ``schedule`` rounds the schedule's expectation, as the existing framework does; ``floor`` rounds it down,
            as the official Dream code does; ``even`` gives every step the same number and the first ones the
            remainder, as the official LLaDA code does.
        time_epsilon: the steps divide the diffusion time from 1 to this, and the last one commits what is left (eps).
        stochastic_quota: draw each step's number from a binomial distribution (stochastic_transfer).
        temperature: 0 takes the most probable token; else tokens are drawn from softmax(logits / temperature), which is
            what the published Gumbel-max draws.
        top_k, top_p: only the k most probable tokens, only the smallest set of tokens that holds probability p.
        seed: an int for all rows, or one per row.
        confidence: what ranks the positions (remasking, alg): ``probability`` of the chosen token, ``margin`` between
            the two most probable, negative ``entropy``, or ``random``.
        confidence_distribution: where confidence is measured. ``model``: on softmax(logits); ``sampling``: on
            softmax(logits / temperature), from which tokens are drawn (official Dream generation_utils.py). There a low
            temperature makes nearly everything sure, and what ties is written from left to right. ``top_k`` and
            ``top_p`` restrict either; without temperature the two are one.
        confidence_temperature: > 0 draws the positions from softmax(confidence / temperature) (alg_temp).
        commit: the commit rule, by name.
        cache: the cache policy, by name.
        guidance_scale: classifier-free guidance s: un + (s + 1)(cond - un) (cfg_scale).
        guidance_keep_tokens: ids that stay visible in the unconditional canvas (cfg_keep_tokens).
        suppress_tokens: ids that are never chosen.
        suppress_confidence_tokens: ids that may be chosen but rank last (begin_suppress_tokens).
        stop_at_eos: a row ends when its block is complete and holds an end of sequence; the rest of its canvas is
            filled without computing. The text is the same. False: the published behaviour.
        suffix_window: of a completion compute the block, what is in front of it, this many masks behind it and the last
            position, which tells the model how long the canvas is; the masks between are left out. An approximation,
            the faster the longer the canvas. None: all masks are computed.
        compiled_step: how the steps inside a block run, all but the first of each. ``off``: by the loop.
            ``cuda-graph``: captured once as one CUDA graph, and the host waits for one flag a step. ``compile``: by
            torch.compile, as one graph. ``eager``: what the other two build, as it stands. ``auto``: CUDA graphs where
            they are possible, else the loop. The tokens are the same. For caches whose steps are planned.

    Raises:
        OptionError: a value out of range, or two options that exclude each other.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    steps: int | None = None
    steps_per_block: int | None = None
    block_size: int | None = 32
    schedule: str = "linear"
    quota: str = "schedule"
    time_epsilon: float = 0.0
    stochastic_quota: bool = False
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | Sequence[int] = 0
    confidence: str = "probability"
    confidence_distribution: str = "model"
    confidence_temperature: float = 0.0
    commit: str = "quota"
    cache: str = "none"
    guidance_scale: float = 0.0
    guidance_keep_tokens: Sequence[int] = ()
    suppress_tokens: Sequence[int] = ()
    suppress_confidence_tokens: Sequence[int] = ()
    stop_at_eos: bool = True
    suffix_window: int | None = None
    compiled_step: str = "off"

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_length", "steps", "steps_per_block", "block_size", "top_k"):
            value = getattr(self, name)
            if value is not None:
                at_least(name, value, 1)
        for name in ("temperature", "confidence_temperature", "guidance_scale"):
            at_least(name, getattr(self, name), 0)
            if not math.isfinite(getattr(self, name)):
                raise OptionError(f"{name} must be a finite number, got {getattr(self, name)}")
        if self.top_p is not None:
            within("top_p", self.top_p, 0.0, 1.0)
        within("time_epsilon", self.time_epsilon, 0.0, 0.5)
        one_of("confidence", self.confidence, CONFIDENCES)
        one_of("confidence_distribution", self.confidence_distribution, CONFIDENCE_DISTRIBUTIONS)
        one_of("quota", self.quota, QUOTAS)
        one_of("compiled_step", self.compiled_step, COMPILED_STEPS)
        if self.max_length is not None and self.max_new_tokens is not None:
            raise OptionError("max_length and max_new_tokens exclude each other; give one of them")
        if self.suffix_window is not None:
            at_least("suffix_window", self.suffix_window, 1)
        if self.suffix_window is not None and self.suffix_window < (self.block_size or 1):
            raise OptionError(
                f"suffix_window={self.suffix_window} is smaller than block_size={self.block_size}; give at least the "
                "block that follows, or leave it out"
            )
        if self.time_epsilon and self.quota == "even":
            raise OptionError("time_epsilon belongs to the schedule; use quota='schedule' or 'floor' with it")
        if self.stochastic_quota and self.quota != "schedule":
            raise OptionError("stochastic_quota draws from the schedule; use quota='schedule' with it")

    def new_tokens(self, prompt_length: int, context_length: int | None) -> int:
        """Length of the completion of a prompt of that length, in tokens; below 1 where nothing fits."""
        if self.max_length is not None:
            return self.max_length - prompt_length
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return DEFAULT_NEW_TOKENS if context_length is None else min(DEFAULT_NEW_TOKENS, context_length - prompt_length)


DEFAULT_NEW_TOKENS = 128
