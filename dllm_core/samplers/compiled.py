"""Block steps that are compiled or captured once and run many times, and the buffers that they run over.

A captured graph reads keys and values by address, so it belongs to one `BlockCache`. A sampler keeps the caches of its
last runs, with what was built over them, and the next run that fits takes one over.

Shapes: R rows, W canvas width, Q positions of one forward, S slots that are read.
"""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from dllm_core.errors import OptionError
from dllm_core.models.attention import FLEX
from dllm_core.models.cache import BlockCache
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers.block_step import Moment, StepFunction, Stepped, block_step
from dllm_core.samplers.cache import CachePolicy, KeptRun, Plan, check_memory
from dllm_core.samplers.commit import CommitRule
from dllm_core.samplers.options import MaskedOptions
from dllm_core.samplers.state import SamplerState
from dllm_core.samplers.view import View

BUCKET = 64  # lengths are rounded up to it, so that runs of nearly the same length share what was built
CACHES = 2  # kept between runs, with their memory
STEPS = 32  # kept for a cache
WARM_UPS = 2


class CompiledSteps:
    """What a sampler runs the steps inside a block by.

    Args:
        denoiser, rule, options: of the sampler; ``options.compiled_step`` says how.
    """

    def __init__(self, denoiser: Denoiser, rule: CommitRule, options: MaskedOptions) -> None:
        self.denoiser, self.rule, self.options = denoiser, rule, options
        self.mode = "cuda-graph" if options.compiled_step == "auto" else options.compiled_step
        self.free: list[BlockCache] = []

    def take(self, rows: int, length: int) -> BlockCache:
        """A cache of at least that size for one run alone, with the steps built over it.

        Raises:
            OptionError: a new one is needed, and there is no room for it.
        """
        length = rounded(length)
        for cache in self.free:
            if cache.rows >= rows and cache.length >= length:
                self.free.remove(cache)
                cache.begin()
                return cache
        # What the new one is larger than, it takes the place of.
        self.free = [cache for cache in self.free if cache.rows > rows or cache.length > length]
        needed = BlockCache.bytes_needed(self.denoiser.bare_model.config, rows, length, self.denoiser.dtype)
        check_memory(needed, rows, length, self.denoiser.device)
        return BlockCache(rows, length)

    def give_back(self, cache: BlockCache) -> None:
        """The run that took it is over."""
        self.free = [*self.free, cache][-CACHES:]

    def step(self, state: SamplerState, ids: torch.Tensor) -> Stepped:
        """One step of a run inside its block; what it hands out is overwritten by the next one.

        Args:
            ids: (R, W) int64, the canvas, rows as in ``state.block.rows``.
        """
        block, run = state.block, state.cache
        plan = run.plan = run.plan_of(View(block.layout, block.step, ids, block.positions))
        now = moment(state, ids, run, plan)
        self._count(state, plan)
        run.cache.settle()
        steps = run.cache.steps
        form = form_of(now)
        if form not in steps:
            while len(steps) >= STEPS:
                del steps[next(iter(steps))]
            steps[form] = self._built(run.cache, now)
        after = steps[form](now)
        if plan.carries and after.lead is not None:
            run.lead = after.lead.clone()
        width = ids.shape[1]
        return after._replace(ids=after.ids[:, :width], confidence=after.confidence[:, :width])

    def _count(self, state: SamplerState, plan: Plan) -> None:
        rows, size = plan.positions.shape[0], state.block.positions.shape[1]
        leads = plan.carries and self.denoiser.logits_are_shifted
        state.stats.forward_passes += 1
        state.stats.positions_processed += plan.positions.numel()
        # A compiled head projects all that is computed (`Denoiser.logits`).
        state.stats.logit_rows += plan.positions.numel() if self.mode == "compile" else rows * (size + leads)

    def _built(self, cache: BlockCache, now: Moment) -> StepFunction:
        step = block_step(self.denoiser, self.rule, self.options, cache)
        if self.mode == "eager":
            return step
        if self.mode == "compile":
            # Isolated: all forms share their code, of which torch else compiles only so many.
            return torch.compile(step, fullgraph=True, dynamic=False, isolate_recompiles=True)
        return CapturedStep(step, now)


class CapturedStep:
    """A step as a CUDA graph over buffers of its own; what differs from call to call is copied into them.

    Args:
        step: what is captured. To run it twice must give what running it once gives: the warm-up and the capture come
            before its first replay.
        now: the first moment that it is for; all others have tensors of the same shapes.
    """

    def __init__(self, step: StepFunction, now: Moment) -> None:
        leaves, form = pytree.tree_flatten(now)
        self.given = leaves
        self.buffers = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        within = pytree.tree_unflatten(self.buffers, form)
        aside = torch.cuda.Stream()  # libraries set themselves up at first use, which no capture may hold
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                step(within)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.left = step(within)

    def __call__(self, now: Moment) -> Stepped:
        leaves = pytree.tree_leaves(now)
        for buffer, old, new in zip(self.buffers, self.given, leaves, strict=True):
            if isinstance(new, torch.Tensor) and new is not old:
                buffer.copy_(new)
        self.given = leaves  # held, so that "the same tensor" cannot mean another one at its address
        self.graph.replay()
        return self.left


def moment(state: SamplerState, ids: torch.Tensor, run: KeptRun, plan: Plan) -> Moment:
    """What a step depends on, its lengths rounded up."""
    block, mask = state.block, run.denoiser.mask_token_id
    if run.wide is None or run.wide[0] is not plan:
        run.wide = plan, widened(plan, run.cache)
    short = rounded(ids.shape[1]) - ids.shape[1]
    hidden = None if state.hidden is None else state.hidden[block.rows, : ids.shape[1]]
    pad = torch.nn.functional.pad

    def number(value: int) -> torch.Tensor:
        return torch.full((), value, dtype=torch.int64, device=ids.device)  # filled there: no copy to wait for

    return Moment(
        ids=pad(ids, (0, short), value=mask),
        plan=run.wide[1],
        lead=run.lead,
        positions=block.positions,
        valid=block.valid,
        quota=block.step_quota,
        keys=state.keys[block.rows],
        number=number(block.number),
        step=number(block.step),
        hidden=None if hidden is None else pad(hidden, (0, short)),
    )


def widened(plan: Plan, cache: BlockCache) -> Plan:
    """The plan with the slots that it reads rounded up; nobody looks at those that are added."""
    reads = min(rounded(plan.reads), cache.length)
    pattern = plan.pattern
    if pattern is None:
        pattern = torch.ones(*plan.positions.shape, plan.reads, dtype=torch.bool, device=plan.positions.device)[:, None]
    return plan._replace(reads=reads, pattern=torch.nn.functional.pad(pattern, (0, reads - plan.reads)))


def form_of(now: Moment) -> tuple[object, ...]:
    """What a step is built for: the shapes of all tensors, and all that is no tensor."""
    return tuple(tuple(each.shape) if isinstance(each, torch.Tensor) else each for each in pytree.tree_leaves(now))


def rounded(length: int) -> int:
    return -(-length // BUCKET) * BUCKET


STEP_METHODS = ("consider", "propose_at", "logits_at", "proposal_from", "is_complete", "revise", "noise")


def why_not(sampler: type, loop: type, rule: CommitRule, policy: CachePolicy, denoiser: Denoiser) -> str | None:
    """Why the steps of such a sampler have no compiled form, with the next step; None where they have one.

    Args:
        sampler: its class; one that overrides a part of the step has steps of its own.
        loop: the class with the core's step.
    """
    own = [name for name in STEP_METHODS if getattr(sampler, name) is not getattr(loop, name)]
    if set(own) - set(sampler.opening_only):
        return f"{sampler.__name__} has steps of its own; leave compiled_step='off'"
    if not policy.steps_are_planned:
        return f"{type(policy).__name__} has none; use cache='fastdllm/dual', or for block diffusion cache='block'"
    if "history" in rule.needs:
        return f"{type(rule).__name__} keeps a history of the block; use commit='fastdllm/threshold' or another rule"
    if denoiser.attention_implementation == FLEX:
        return "flex attention takes its patterns as programs; load the model with attn_implementation='sdpa'"
    return None


def compiled_steps(
    sampler: type, loop: type, denoiser: Denoiser, rule: CommitRule, policy: CachePolicy, options: MaskedOptions
) -> CompiledSteps | None:
    """What ``options.compiled_step`` asks for; None: the loop's own steps.

    Raises:
        OptionError: there is no compiled form, or no GPU for a CUDA graph. ``auto`` does without then.
    """
    mode = options.compiled_step
    if mode == "off":
        return None
    reason = why_not(sampler, loop, rule, policy, denoiser)
    if reason is None and mode in ("auto", "cuda-graph") and denoiser.device.type != "cuda":
        reason = f"the model is on {denoiser.device}, which has no CUDA graphs; use compiled_step='compile' or 'off'"
    if reason is None:
        return CompiledSteps(denoiser, rule, options)
    if mode == "auto":
        return None
    raise OptionError(f"compiled_step={mode!r} has no form here: {reason}")
