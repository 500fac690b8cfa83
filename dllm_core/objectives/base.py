"""The contract of a training objective: `corrupt` draws all randomness, `loss` draws none.

Shapes: B batch, L length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dllm_core.errors import DataError, OptionError
from dllm_core.noise.corruption import Corruption

if TYPE_CHECKING:
    from dllm_core.models.denoiser import Denoiser

IGNORED_LABEL = -100  # the label of a token that is never masked and never predicted, as everywhere in Hugging Face
NO_DOCUMENT = -1  # what ``document_ids`` holds at padding

Batch = Mapping[str, Tensor]
"""``input_ids`` (B, L) int64; optional ``labels`` (B, L) int64, -100 = context only; optional ``attention_mask``
(B, L), nonzero = real token; optional ``document_ids`` (B, L) int64, the packed document of each token, -1 = padding.
Without labels every real token is one to learn."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectiveOutput:
    """What a loss returns.

    Args:
        loss: scalar, differentiable; what to minimise, normalised and weighted as the options say.
        nll_sum: scalar, detached; estimate of the upper bound on -log p(tokens) in nats, summed over the batch,
            whatever weights the loss uses. ``nll_sum / token_count`` is the bound per token.
        token_count: scalar int64; the tokens that the batch teaches.
        metrics: further scalars, detached, each a mean over the batch.
    """

    loss: Tensor
    nll_sum: Tensor
    token_count: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """A training objective. Subclasses are frozen dataclasses of their options, so they can be printed and compared.

    Attributes:
        needs: what a family's adapter must declare for it, such as ``supports_block_causal``.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def corrupt(self, batch: Batch, denoiser: Denoiser, *, generator: torch.Generator) -> Corruption:
        """Noise a batch. Everything random is drawn here, from the generator alone."""

    @abstractmethod
    def loss(
        self, denoiser: Denoiser, batch: Batch, corruption: Corruption, *, normalizer: Tensor | None = None
    ) -> ObjectiveOutput:
        """The loss of a corrupted batch; deterministic.

        Args:
            normalizer: what the summed loss is divided by, scalar; None: this batch's own `normalizer`. A trainer
                passes the sum of `normalizer` over all batches of the optimizer step, so that their losses add up to
                that of one large batch.
        """

    def check_model(self, denoiser: Denoiser) -> None:
        """Raise where the model cannot be trained like this; trainers call it before the first step.

        Raises:
            OptionError: the family declares no such capability.
        """
        for capability in self.needs:
            if not getattr(denoiser.adapter, capability, False):
                raise OptionError(
                    f"{type(self).__name__} needs {capability}, which {type(denoiser.adapter).__name__} does not "
                    "declare; use objective 'mdlm', or a checkpoint of another family"
                )

    def check_batch(self, batch: Batch) -> None:  # noqa: B027
        """Raise where training on such a batch would not teach what it should; trainers call it before each loss.

        Raises:
            DataError: the message says what to change.
        """

    def for_evaluation(self) -> Objective:
        """The objective that measures the bound; itself, unless training draws its noise in another way."""
        return self

    @abstractmethod
    def normalizer(self, batch: Batch) -> Tensor:
        """What this batch adds to the denominator of the loss; scalar int64."""


def maskable_positions(batch: Batch) -> Tensor:
    """The tokens to learn: label not -100 and, where there is an attention mask, real. (B, L) bool.

    Raises:
        DataError: labels or attention mask are not shaped like the input ids.
    """
    ids = batch["input_ids"]
    for name in ("labels", "attention_mask", "document_ids"):
        if batch.get(name) is not None and batch[name].shape != ids.shape:
            raise DataError(
                f"{name} is shaped {tuple(batch[name].shape)}, input_ids {tuple(ids.shape)}; give one value per token"
            )
    real = attended_positions(batch)
    labels = batch.get("labels")
    if labels is not None:
        return labels != IGNORED_LABEL if real is None else (labels != IGNORED_LABEL) & real
    return torch.ones_like(ids, dtype=torch.bool) if real is None else real


def document_positions(document_ids: Tensor) -> Tensor:
    """0, 1, ... over each packed document. (B, L) int64 -> (B, L) int64."""
    place = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return place - (place * begins).cummax(1).values


def attended_positions(batch: Batch) -> Tensor | None:
    """Which tokens are real, bool (B, L); None where the batch says nothing of it: every token is."""
    mask, documents = batch.get("attention_mask"), batch.get("document_ids")
    if documents is not None:
        return documents >= 0 if mask is None else (documents >= 0) & mask.bool()
    return None if mask is None else mask.bool()
