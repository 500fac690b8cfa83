"""What all checks of objectives share: how the objective is made, the models and batches it meets.

Shapes: B batch, L length, V data tokens, H hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn

from dllm_core.config import from_mapping
from dllm_core.conformance.suite import Suite
from dllm_core.conformance.toy import ToyAdapter, ToyOutput, random_joint, toy_denoiser
from dllm_core.models.denoiser import Denoiser
from dllm_core.noise import Corruption, Schedule, apply_mask, get_schedule
from dllm_core.objectives import Batch, Objective, ObjectiveOutput

VOCAB, LENGTH = 3, 5
HIDDEN = 6
IGNORED = -100


class Learner(nn.Module):
    """A small trainable model in the shape of a Hugging Face model: every row sees the mean of its attended tokens."""

    def __init__(self, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB + 1, HIDDEN)
        self.places = nn.Embedding(LENGTH, HIDDEN)
        self.mix = nn.Linear(2 * HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCAB + 1)
        self.config = SimpleNamespace(_attn_implementation="sdpa")
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> ToyOutput:
        """Ids (B, L), mask (B, L) or pattern (B, 1, L, L), positions (B, L) in; scores (B, L, V + 1) or rows out."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        own = self.embedding(input_ids) + self.places(position_ids)  # (B, L, H)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen = (real[:, None] if real.dim() == 2 else real[:, 0]).to(own)  # (B or 1, 1 or L, L)
        mean = (seen / seen.sum(-1, keepdim=True).clamp(min=1)) @ own
        hidden = torch.tanh(self.mix(torch.cat([own, mean.expand_as(own)], -1)))
        return ToyOutput(self.head(hidden))


class ObjectiveSuite(Suite):
    """Attributes of the test class, and what its checks build on.

    Attributes:
        options: options to make the objective with.
        bad_options: values that its options must refuse, ``{"time_epsilon": [-0.1, 1]}``.
        masks_tokens: hides tokens behind the mask token and learns to tell them.
        keeps_length: the noised text stands over the clean one, position by position. False for objectives that insert
            or delete.
        hides_independently: hides each token to learn on its own, with the probability 1 - alpha(time) of its
            `schedule`, at a time that is drawn uniformly between `lowest_time` and 1 for each sequence.
        is_bound: on average over data, times and masks ``nll_sum`` is the any-order bound on -log p, which equals the
            entropy where the model knows the posterior.
        loss_is_bound: the loss is ``nll_sum`` divided by the normalizer.
        one_forward: a loss is one forward pass of the model.
        scores_hidden_only: only hidden positions meet the vocabulary head.
        supports_right_shift: a family whose logits are shifted gets the same loss. False where the position before a
            token may know less than the token's own, as at the start of a block.
        hides_context: where a corruption hides context, the model does not see it. False for objectives that show the
            clean text beside the noised one.
        tolerance: by how much equal losses and gradients may differ, relative and absolute.
    """

    kind = "objective"
    options: ClassVar[Mapping[str, object]] = {}
    bad_options: ClassVar[Mapping[str, Sequence[object]]] = {}
    masks_tokens: ClassVar[bool] = True
    keeps_length: ClassVar[bool] = True
    hides_independently: ClassVar[bool] = True
    is_bound: ClassVar[bool] = True
    loss_is_bound: ClassVar[bool] = False
    one_forward: ClassVar[bool] = True
    scores_hidden_only: ClassVar[bool] = True
    supports_right_shift: ClassVar[bool] = True
    hides_context: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-6

    def make(self, **options: object) -> Objective:
        """The objective under test, with the options of the class and these."""
        return from_mapping(self.load_component(), dict(self.options) | options, what=self.kind)

    def denoiser(self, joint: Tensor | None = None, **conventions: object) -> Denoiser:
        """The toy that knows the joint (V,) * D; override where the objective needs another kind of model."""
        return toy_denoiser(random_joint(VOCAB, LENGTH, seed=1) if joint is None else joint, **conventions)

    def learner(self, *, dtype: torch.dtype = torch.float64) -> Denoiser:
        """A small model with several trainable parameters; override where the objective needs another kind."""
        return Denoiser(Learner(dtype=dtype), ToyAdapter(), special_ids={"mask": VOCAB, "pad": 0})

    def schedule(self, objective: Objective) -> Schedule:
        """The schedule that the objective hides by: its option ``schedule``, linear where it has none."""
        return get_schedule(getattr(objective, "schedule", "linear"))

    def lowest_time(self, objective: Objective) -> float:
        """The lowest diffusion time that is drawn: the option ``time_epsilon``, 0 where there is none."""
        return getattr(objective, "time_epsilon", 0.0)

    def hide(self, batch: Batch, masked: Tensor, time: Tensor, denoiser: Denoiser) -> Corruption:
        """The corruption that hides the positions ``masked`` (B, L) at ``time`` (B,); override for other fields."""
        return apply_mask(batch["input_ids"], masked, denoiser.mask_token_id, time)

    def draw(self, objective: Objective, batch: Batch, denoiser: Denoiser, *, seed: int = 0) -> Corruption:
        """A corruption drawn with that seed."""
        return objective.corrupt(batch, denoiser, generator=torch.Generator().manual_seed(seed))

    def score(
        self,
        objective: Objective,
        denoiser: Denoiser,
        batch: Batch,
        corruption: Corruption,
        *,
        normalizer: Tensor | None = None,
    ) -> tuple[ObjectiveOutput, Tensor]:
        """The output of the loss, and its gradient over all parameters in one row (P,), float64."""
        denoiser.model.zero_grad()
        output = objective.loss(denoiser, batch, corruption, normalizer=normalizer)
        output.loss.backward()
        return output, gradient(denoiser)


def gradient(denoiser: Denoiser) -> Tensor:
    """The gradient of all parameters in one row (P,), 0 where there is none."""
    pairs = ((parameter, parameter.grad) for parameter in denoiser.model.parameters())
    grads = [torch.zeros_like(parameter) if grad is None else grad for parameter, grad in pairs]
    return torch.cat([grad.detach().double().flatten() for grad in grads])


def ragged() -> dict[str, Tensor]:
    """Eight rows (8, L): plain ones, ones with context, with padding on either side, one that teaches nothing."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(VOCAB, (8, LENGTH), generator=generator)
    real = torch.ones_like(ids)
    real[2, 3:] = real[5, :2] = real[6, 4:] = 0
    labels = ids.clone()
    labels[1, :2] = labels[3, ::2] = labels[4] = labels[6, 0] = IGNORED
    return {"input_ids": ids, "labels": labels, "attention_mask": real}


def plain(rows: int = 8) -> dict[str, Tensor]:
    """Rows (B, L) all of whose tokens are to be learned."""
    return {"input_ids": torch.randint(VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(3))}


def to_learn(batch: Batch) -> Tensor:
    """Where the contract says that there is a token to learn: label not -100, attended to. (B, L) bool"""
    learned = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    if "labels" in batch:
        learned &= batch["labels"] != IGNORED
    if "attention_mask" in batch:
        learned &= batch["attention_mask"].bool()
    return learned


def rows_of(batch: Batch, corruption: Corruption, rows: Tensor | slice) -> tuple[dict[str, Tensor], Corruption]:
    """Some rows of a batch and of its corruption, or all in another order."""
    count = len(batch["input_ids"])
    fields = {field.name: getattr(corruption, field.name) for field in dataclasses.fields(corruption)}
    cut = {name: value[rows] for name, value in fields.items() if isinstance(value, Tensor) and len(value) == count}
    return {name: value[rows] for name, value in batch.items()}, dataclasses.replace(corruption, **cut)


def tensors_of(thing: Mapping[str, object] | Corruption) -> dict[str, Tensor]:
    """The tensors of a batch or a corruption by name."""
    if not isinstance(thing, Mapping):
        thing = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    return {name: value for name, value in thing.items() if isinstance(value, Tensor)}
