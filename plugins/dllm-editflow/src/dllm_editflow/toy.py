"""A small trainable model with edit heads, for the conformance suite and tests.

Shapes: B batch, L length, H hidden size, V data tokens (the mask token is id V).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dllm_core.conformance.objective_suite import HIDDEN, VOCAB, Learner
from dllm_core.conformance.toy import ToyAdapter
from dllm_core.models.denoiser import Denoiser
from dllm_editflow.models.heads import EditStates
from dllm_editflow.models.rates import rates_from

ROOM = 32  # positions


class EditLearner(Learner):
    """Every row sees the mean of its attended tokens; the time moves all of them."""

    def __init__(self, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(seed=seed, dtype=dtype)
        self.edit_options = None  # of heads that are as they are
        self.places = nn.Embedding(ROOM, HIDDEN)
        self.clock = nn.Linear(1, HIDDEN)
        self.rate_heads = nn.Linear(HIDDEN, 3)
        self.substitute = nn.Linear(HIDDEN, VOCAB + 1)
        self.insert = nn.Linear(HIDDEN, VOCAB + 1)
        del self.head  # no token is predicted in place
        generator = torch.Generator().manual_seed(seed + 1)
        for module in (self.places, self.clock, self.rate_heads, self.substitute, self.insert):
            for parameter in module.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)

    def get_output_embeddings(self) -> nn.Module:
        return self.insert

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        time: Tensor | None = None,
        edits: Callable[[EditStates], object],
        edits_are_shifted: bool | None = None,
    ) -> object:
        """Ids (B, L), mask (B, L), positions (B, L), time (B,) in; what the reader makes of the states out."""
        own = self.embedding(input_ids) + self.places(position_ids)  # (B, L, H)
        own = own + self.clock(time[:, None].to(own.dtype))[:, None]
        real = attention_mask[..., None].to(own.dtype)
        mean = (own * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        hidden = torch.tanh(self.mix(torch.cat([own, mean.expand_as(own)], -1)))
        return edits(
            EditStates(rates_from(self.rate_heads(hidden), "hazard"), hidden, hidden, self.substitute, self.insert)
        )


class EditToyAdapter(ToyAdapter):
    """The conventions of the toy, and that it has edit heads."""

    supports_edits = True


def edit_learner(*, dtype: torch.dtype = torch.float64, bos: int | None = None) -> Denoiser:
    """A denoiser over `EditLearner`; prompts are token ids, V is the mask token."""
    ids = {"mask": VOCAB, "pad": 0} | ({} if bos is None else {"bos": bos})
    return Denoiser(EditLearner(dtype=dtype), EditToyAdapter(), special_ids=ids)
