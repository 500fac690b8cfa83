"""The ReMDM sampler: the core's loop with another plan, and written tokens that are masked again after a step.

Shapes: B rows, R rows still being written, L canvas length, W the longest of those rows, K block size, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import ClassVar

import torch
from dllm_core import Denoiser, OptionError
from dllm_core.config import one_of, within
from dllm_core.noise import uniform
from dllm_core.samplers import MaskedOptions, Sampler, SamplerState, Step, planning
from dllm_core.samplers.quota import even_quota, schedule_quota
from dllm_core.samplers.state import Block, spread
from torch import Tensor

from dllm_remdm.plan import Counts, Draw, drawn, rounded, without_idle
from dllm_remdm.rates import ETAS, Rates, noise_schedule, rates

# Purposes of noise; 0 to 15 are the core's own.
AGAIN_COUNT, AGAIN_PLACE = 16, 17
PURPOSES = (planning.QUOTA, AGAIN_COUNT)  # writing draws from the core's own, so that eta=0 is the core's sampler


@dataclass(frozen=True, kw_only=True)
class ReMDMOptions(MaskedOptions):
    """Options of the masked sampler, and those of masking again.

    Args:
        remask: how the rate sigma is chosen: ``cap`` min(eta, most), ``rescale`` eta * most, ``conf`` eta * most for
            all tokens together, shared out by softmax(-confidence), ``loop`` as ``cap`` while alpha stands still at
            ``alpha_on``, and 0 before and after; ``most`` is (1 - alpha_s) / alpha_t.
        eta: 0 never masks again. None: the published value, 0.008, 0.015, 1 and 0.02.
        t_on, t_off: times between which ``loop`` stands still.
        alpha_on: the share of written tokens meanwhile.
        stochastic_quota: the published law, in which every token decides on its own. False: its expectations, rounded,
            as in the core's samplers.

    Raises:
        OptionError: a value out of range, or two options that exclude each other.
    """

    remask: str = "cap"
    eta: float | None = None
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("remask", self.remask, ETAS)
        if self.eta is not None:
            within("eta", self.eta, 0, 1)
        for name in ("t_on", "t_off", "alpha_on"):
            within(name, getattr(self, name), 0.001, 0.999)
        if self.t_off >= self.t_on:
            raise OptionError(f"t_off must be below t_on, got t_off={self.t_off} and t_on={self.t_on}; time runs down")


@dataclass(kw_only=True)
class ReMDMBlock(Block):
    """A block with what masking again needs.

    Args:
        again: (R, S) int64, how many tokens each step masks again.
        open_to_us: (R, K) bool, masks before the first step; only these may be masked again.
        confidence: (R, K) float32, of the tokens as they were written.
    """

    again: Tensor
    open_to_us: Tensor
    confidence: Tensor


class ReMDMSampler(Sampler):
    """Masked diffusion whose tokens may be masked again: what was written early can be written anew, knowing more.

    Commits are planned by `dllm_remdm.plan`; which positions are written is the business of ``confidence``, as in the
    core (``random`` is the published choice). With ``eta=0`` this is ``core/mdlm``, token for token.

    Source: arXiv 2503.00307; with ``conf`` at most one token a step is masked again, each with the published
    probability (published code lets every token decide on its own, so now and then it is none or two).
    """

    options_class: ClassVar[type[MaskedOptions]] = ReMDMOptions

    def __init__(self, denoiser: Denoiser | None = None, **options: object) -> None:
        super().__init__(denoiser, **options)
        if not self.rule.follows_quota:
            raise OptionError(f"commit={self.options.commit!r} sets its own pace, ReMDM plans it; use commit='quota'")
        if self.options.time_epsilon or self.options.quota == "floor":
            raise OptionError("ReMDM plans on its own grid of times; leave time_epsilon and quota='floor' out")

    def open_block(self, state: SamplerState) -> Block | None:
        """The next block, planned row by row."""
        # Its counts are replaced below, so none are drawn for it.
        block = planning.open_block(state, replace(self.options, stochastic_quota=False), follows_quota=True)
        if block is None:
            return None
        plans = self._plans(state, block.number)
        steps = max(map(len, plans))
        padded = [plan + [Counts(0, 0, 0)] * (steps - len(plan)) for plan in plans]
        here = state.input_ids[block.rows].gather(1, block.positions) == self.denoiser.mask_token_id  # (R, K)
        device = block.positions.device
        common = {field.name: getattr(block, field.name) for field in fields(Block)}
        common["quota"] = torch.tensor([[counts.write for counts in plan] for plan in padded], device=device)
        # At least one, so that a step in which every row rests still has a shape.
        common["open_counts"] = [max(1, *(plan[step].masks for plan in padded)) for step in range(steps)]
        return ReMDMBlock(
            **common,
            again=torch.tensor([[counts.again for counts in plan] for plan in padded], device=device),
            open_to_us=here & block.valid,
            confidence=torch.zeros(here.shape, device=device),
        )

    def step(self, state: SamplerState) -> Step:
        """As the core's; remembers how sure the written tokens were."""
        block = state.block
        step = super().step(state)
        new = step.committed[block.rows].gather(1, block.positions) & block.valid
        block.confidence = torch.where(new, step.confidence[block.rows].gather(1, block.positions), block.confidence)
        return step

    def revise(self, state: SamplerState, ids: Tensor) -> Tensor:
        """Masks some of the tokens that were there before the step. (R, W) -> (R, W)"""
        block, mask = state.block, self.denoiser.mask_token_id
        before = planning.current_ids(state).gather(1, block.positions)  # (R, K)
        written = block.open_to_us & (before != mask)
        weights = -block.confidence if self.options.remask == "conf" else torch.zeros_like(block.confidence)
        draws = self.noise(state, AGAIN_PLACE, block.positions)
        chosen = draw_places(written, weights, block.again[:, block.step], draws)
        return ids.masked_fill(spread(chosen.long(), block.positions, chosen, ids.shape[1]).bool(), mask)

    def _plans(self, state: SamplerState, number: int) -> list[list[Counts]]:
        """The counts of the block, row by row."""
        masks = [state.canvas.masks(row, number) for row in state.active]
        each = [self._rates(planning.steps_per_block(self.options, state.canvas, row)) for row in state.active]
        one_in_all = self.options.remask == "conf"
        if self.options.stochastic_quota:
            dice = dice_of(torch.tensor(state.told(state.keys))[state.active], number, max(map(len, each)), max(masks))
            plans = [drawn(n, own, die, one_in_all=one_in_all) for n, own, die in zip(masks, each, dice, strict=True)]
        else:
            counts = [self._counts(n, len(own)) for n, own in zip(masks, each, strict=True)]
            plans = [rounded(net, own, one_in_all=one_in_all) for net, own in zip(counts, each, strict=True)]
        return [without_idle(plan) for plan in plans]

    def _rates(self, steps: int) -> tuple[Rates, ...]:
        options = self.options
        eta = ETAS[options.remask] if options.eta is None else options.eta
        return rates(steps, options.schedule, options.remask, eta, options.t_on, options.t_off, options.alpha_on)

    def _counts(self, masks: int, steps: int) -> tuple[int, ...]:
        """What the core's sampler would write in each step."""
        options = self.options
        if options.quota == "even":
            return even_quota(masks, steps)
        noise = noise_schedule(options.schedule, options.remask, options.t_on, options.t_off, options.alpha_on)
        return schedule_quota(masks, steps, noise)


def draw_places(written: Tensor, weights: Tensor, counts: Tensor, draws: Tensor) -> Tensor:
    """That many of the written places in each row, drawn from softmax(weights) without replacement.

    Args:
        written: (R, K) bool.
        weights: (R, K) float, equal ones for places at random.
        counts: (R,) int64.
        draws: (R, K) uniform numbers.

    Returns:
        (R, K) bool.
    """
    scores = (weights - (-draws.log()).log()).masked_fill(~written, -torch.inf)  # Gumbel-top-k
    order = scores.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(order.shape[1], device=order.device) < counts[:, None]
    return torch.zeros_like(written).scatter(1, order, first) & written


def dice_of(keys: Tensor, block: int, steps: int, masks: int) -> list[Draw]:
    """For each row what draws its counts: the row's own noise, so that its plan is the same in any batch.

    Args:
        keys: (R,) int64, on the host.
        masks: the most tokens that any row decides on.
    """
    step, token = torch.arange(steps)[:, None], torch.arange(masks)
    write, again = (uniform(keys[:, None, None], purpose, block, step, token) for purpose in PURPOSES)  # (R, S, K)

    def draw(row: int, what: str, step: int, n: int, probability: float) -> int:
        noise = write if what == "write" else again
        return int((noise[row, step, :n] < probability).sum())

    return [partial(draw, row) for row in range(len(keys))]
