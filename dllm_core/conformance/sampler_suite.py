"""What all checks of samplers share: how the sampler is made, the toys it runs on, the prompts it gets.

Shapes: B rows, L canvas length, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dllm_core import registry
from dllm_core.conformance.expect import expect
from dllm_core.conformance.suite import Suite
from dllm_core.conformance.toy import random_joint, toy_denoiser
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers import SampleOutput, Sampler, Step

VOCAB, LENGTH, NEW = 3, 7, 4  # data tokens, longest canvas, new tokens of each prompt
MASK = VOCAB
END, PAD = 2, 0  # data tokens of the toys that know an end of sequence and a padding
PROMPTS = [[1], [0, 2], [2, 1, 0]]  # unequal lengths, so that a batch of them is ragged
CANVASES = [[1, MASK, MASK, 0, MASK], [MASK, 2, MASK], [0, 1, 1, 2, MASK, 0, MASK]]
STEPS = 200  # far more than any run on these canvases takes


class SamplerSuite(Suite):
    """Attributes of the test class, and what its checks build on.

    Attributes:
        options: options to run the sampler with. The checks set ``max_new_tokens``, ``max_length``, ``steps``,
            ``block_size``, ``temperature``, ``seed`` and the options that they are about.
        bad_options: values that the sampler's own options must refuse, ``{"strength": [-1, 2]}``.
        lacks: options of `MaskedOptions` that the sampler does not have, as its way of decoding knows no such thing:
            blocks, a schedule of how many tokens to write. The checks leave them out, and hold it to refusing them.
        supports_infill: fills masks inside given text.
        supports_temperature: draws tokens at random where ``temperature`` is above 0.
        supports_guidance: computes classifier-free guidance.
        supports_shifted_logits: is defined for models whose logits are right-shifted.
        deterministic_at_zero: at ``temperature=0`` nothing is random, whatever the seed.
        follows_steps: takes as many steps as ``steps`` says, so one step is one forward pass that writes everything.
        follows_schedule: writes as many tokens a step as ``quota`` and ``schedule`` say.
        block_by_block: finishes a block before it writes in the next one.
        ranks_by_confidence: writes the positions first whose tokens are surest.
        stops_at_eos: skips the blocks after an end of sequence.
        may_remask: masks again what it has written. False: what is written stays.
        samples_exactly: a token a step at ``temperature=1`` and ``confidence="random"`` draws from the model's joint
            distribution.
    """

    kind = "sampler"
    options: ClassVar[Mapping[str, object]] = {}
    bad_options: ClassVar[Mapping[str, Sequence[object]]] = {}
    lacks: ClassVar[Sequence[str]] = ()
    supports_infill: ClassVar[bool] = True
    supports_temperature: ClassVar[bool] = True
    supports_guidance: ClassVar[bool] = True
    supports_shifted_logits: ClassVar[bool] = True
    deterministic_at_zero: ClassVar[bool] = True
    follows_steps: ClassVar[bool] = True
    follows_schedule: ClassVar[bool] = True
    block_by_block: ClassVar[bool] = True
    ranks_by_confidence: ClassVar[bool] = True
    stops_at_eos: ClassVar[bool] = True
    may_remask: ClassVar[bool] = False
    samples_exactly: ClassVar[bool] = False

    def denoiser(self, joint: Tensor | None = None, **conventions: object) -> Denoiser:
        """The toy model that the checks run on; override where the sampler needs another kind of model.

        Args:
            joint: (V,) * D; None: one with every text possible and strong dependence between the positions.
            conventions: as of `dllm_core.conformance.toy.toy_denoiser`.
        """
        return toy_denoiser(random_joint(VOCAB, LENGTH, seed=1) if joint is None else joint, **conventions)

    def make(self, denoiser: Denoiser | None = None, **options: object) -> Sampler:
        """The sampler under test, with the options it is registered with, those of the class, and these."""
        chosen = self._registered_defaults() | dict(self.options) | {"max_new_tokens": NEW} | options
        if "max_length" in options:
            del chosen["max_new_tokens"]
        chosen = {name: value for name, value in chosen.items() if name not in self.lacks}
        return self.load_component()(self.denoiser() if denoiser is None else denoiser, **chosen)

    def settings(self, denoiser: Denoiser | None = None) -> Iterator[tuple[str, Sampler]]:
        """Samplers in words and in fact, over step budgets, block sizes, temperatures and other shared options."""
        varied: list[dict] = [{"block_size": size, "steps": steps} for size in (1, 3, None) for steps in (1, 3, None)]
        varied += [{"confidence": kind, "steps": 2} for kind in ("margin", "entropy", "random")]
        # Options that exclude each other are set together: a preset may have chosen one of them.
        even = {"quota": "even", "stochastic_quota": False, "time_epsilon": 0.0}
        varied += [{"steps": 3} | more for more in ({"schedule": "cosine"}, even, {"stochastic_quota": True})]
        varied += [{"confidence_temperature": 0.5, "block_size": 3}]
        varied += [{"temperature": 1.0, "block_size": size} for size in (3, None) if self.supports_temperature]
        had = [{name: value for name, value in each.items() if name not in self.lacks} for each in varied]
        for number, options in enumerate(had):
            if options not in had[:number]:
                yield self._setting(denoiser, **options)

    @functools.cached_property
    def temperature(self) -> float:
        """A temperature at which tokens are drawn, 0 where the sampler draws none."""
        return 1.0 if self.supports_temperature else 0.0

    def _setting(self, denoiser: Denoiser | None, **options: object) -> tuple[str, Sampler]:
        return ", ".join(f"{name}={value}" for name, value in options.items()), self.make(denoiser, **options)

    def _registered_defaults(self) -> dict[str, object]:
        return {} if ":" in self.component else dict(registry.find(self.kind, self.component).spec.defaults)


def fresh(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows that the sampler may spoil without spoiling the next check."""
    return [list(row) for row in rows]


def independent(marginals: Tensor) -> Tensor:
    """The joint (V,) * D of positions that know nothing of each other, from their marginals (D, V)."""
    joint = marginals[0]
    for row in marginals[1:]:
        joint = joint[..., None] * row
    return joint


def texts(output: SampleOutput) -> list[list[int]]:
    """The rows of a result without their padding."""
    return [row[:length] for row, length in zip(output.sequences.tolist(), output.lengths.tolist(), strict=True)]


def completions(output: SampleOutput, *, end: int | None = None) -> list[list[int]]:
    """The rows of a result without prompt and padding, cut before the end of sequence."""
    starts = output.prompt_lengths.tolist()
    rows = [text[start:] for text, start in zip(texts(output), starts, strict=True)]
    return [row[: row.index(end)] if end in row else row for row in rows]


def steps_of(sampler: Sampler, prompts: Sequence[Sequence[int]]) -> list[Step]:
    """All steps of a stream; a stream without end is refused."""
    steps = []
    for step in sampler.stream(fresh(prompts)):
        steps.append(step)
        expect(len(steps) < STEPS, f"the stream is not finished after {STEPS} steps; make every step commit something")
    return steps


def start_of(prompts: Sequence[Sequence[int]], new: int = NEW) -> Tensor:
    """The canvas before the first step, masks also where padding will be. -> (B, L) int64"""
    width = max(len(prompt) + new for prompt in prompts)
    return torch.tensor([[*prompt, *[MASK] * (width - len(prompt))] for prompt in prompts])
