"""How the edit heads of one checkpoint are built and read: fields of its ``config.json``.

A field that is absent has the value of the published checkpoints, so those load as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from dllm_core.errors import ModelLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ALLOWED: Mapping[str, tuple[object, ...]] = {
    "edit_rate_form": ("softplus", "hazard"),
    "edit_time_embedding": (False, True),
    "edit_vocabulary": ("separate", "shared"),
    "edit_heads_read": ("published", "final"),
}


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """The defaults are the published heads; `CONVERTED` is what new checkpoints have.

    Args:
        edit_rate_form: ``"softplus"``: three independent rates. ``"hazard"``: substitution and deletion are two shares
            of one softmax whose third is keeping the token, so they add up to at most 1, as their optimum does; the
            rate of insertions, a number of tokens, stays a softplus.
        edit_time_embedding: a vector made of the time is added to every token's embedding.
        edit_vocabulary: ``"separate"``: substitutions and insertions have a projection each, beside the vocabulary
            head. ``"shared"``: both use the vocabulary head itself, insertions through a square matrix before it.
        edit_heads_read: ``"final"``: what the vocabulary head reads. ``"published"``: the same, with two peculiarities
            of the published code: ModernBERT's heads read the state before the final norm, and with right-shifted
            logits the first token has no rates and even logits.

    Raises:
        ModelLoadError: a value that is not allowed.
    """

    edit_rate_form: str = "softplus"
    edit_time_embedding: bool = False
    edit_vocabulary: str = "separate"
    edit_heads_read: str = "published"

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED.items():
            value = getattr(self, name)
            if value not in allowed:
                shown = " or ".join(repr(each) for each in allowed)
                raise ModelLoadError(f"config has {name}={value!r}; it must be {shown}; correct config.json")

    @classmethod
    def of(cls, config: PreTrainedConfig) -> HeadOptions:
        """Those that a configuration holds."""
        return cls(**{each.name: getattr(config, each.name, each.default) for each in fields(cls)})


CONVERTED = HeadOptions(
    edit_rate_form="hazard", edit_time_embedding=True, edit_vocabulary="separate", edit_heads_read="final"
)
