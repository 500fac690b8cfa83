"""The conformance suite's exact model with edit heads: every mask is substituted, by its exact posterior.

Editing from masks is then masked diffusion, and a sampler of edits can be held to all that a masked one is.

Shapes: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from dllm_core.conformance.toy import ExactModel, ToyTokenizer
from dllm_core.models.denoiser import Denoiser
from dllm_editflow.models.heads import EditFlowModel, EditStates, one_later
from dllm_editflow.models.options import HeadOptions
from dllm_editflow.toy import EditToyAdapter


class ExactEditor(EditFlowModel, ExactModel):
    """`ExactModel`, whose rate of substitution is 1 at masks; all other rates are 0. It knows no time."""

    def __init__(self, joint: Tensor, *, shifted: bool = False) -> None:
        ExactModel.__init__(self, joint, shifted=shifted)
        self.edit_options = HeadOptions(edit_vocabulary="shared")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        time: Tensor | None = None,
        edits: Callable[[EditStates], object] | None = None,
        edits_are_shifted: bool | None = None,
        **cache: object,
    ) -> object:
        """Ids, mask and positions (B, L) in; the logits out, or what a reader makes of the states."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        if edits is None:
            return ExactModel.forward(self, **given, **cache)
        with ExitStack() as hooks:
            hidden, _ = self._what_the_head_reads(hooks, **given)
        if edits_are_shifted:
            hidden = one_later(hidden, empty=False)
        masked = (input_ids == self.vocab).to(hidden.dtype)  # (B, L)
        nothing = torch.zeros_like(masked)
        return edits(EditStates(torch.stack([masked, nothing, nothing], -1), hidden, hidden, self.head, self.head))


def exact_editor(
    joint: Tensor, *, eos: int | None = None, pad: int | None = None, shifted: bool = False, with_words: bool = False
) -> Denoiser:
    """A denoiser over `ExactEditor`; arguments as of `dllm_core.conformance.toy.toy_denoiser`."""
    ids = {"mask": joint.shape[0], "eos": eos, "pad": pad}
    tokenizer = ToyTokenizer(joint.shape[0], eos=eos) if with_words else None
    given = {name: token for name, token in ids.items() if token is not None}
    model = ExactEditor(joint, shifted=shifted)
    return Denoiser(model, EditToyAdapter(), tokenizer, special_ids=given, logits_are_shifted=shifted)
