"""One pass of a model with edit heads, whatever it is wrapped in.

Shapes: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dllm_core.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from dllm_core.models.denoiser import Denoiser
    from dllm_editflow.models.heads import EditStates

T = TypeVar("T")


def read_edits(
    denoiser: Denoiser,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    *,
    time: Tensor | None,
    reader: Callable[[EditStates], T],
    position_ids: Tensor | None = None,
) -> T:
    """What ``reader`` makes of the states of the edits, in exactly one forward of ``denoiser.model``.

    The reader is called inside that forward: what it projects through the heads is seen by DDP, FSDP, ZeRO and PEFT.

    Args:
        input_ids: (B, L) int64, right-padded.
        attention_mask: (B, L) bool, True = real token; None: all are.
        time: (B,) float in [0, 1]; None, or a model without embedding of the time: it is not said.
        position_ids: (B, L) int64; None: 0, 1, ... over the real tokens of each row.

    Raises:
        OptionError: the model has no edit heads.
    """
    if not hasattr(denoiser.bare_model, "edit_options"):
        raise OptionError(
            f"a model of type {denoiser.bare_model.config.model_type!r} has no edit heads; give it some: "
            "dllm convert --to editflow MODEL FOLDER"
        )
    if position_ids is None and attention_mask is not None:
        position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    return denoiser.model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        time=time,
        edits=reader,
        edits_are_shifted=denoiser.logits_are_shifted,
    )
