"""The sampler: the loop of dllm-core, to be changed where it should differ."""

from __future__ import annotations

from dllm_core import Sampler


class PluginTemplateSampler(Sampler):
    """Masked diffusion that writes several tokens in a step where the model is sure of them.

    The loop is that of `Sampler`: propose a token at each open position, select some, write them. Here it can be made
    different: override ``open_block`` to plan how many are written, ``revise`` to mask some again, or set
    ``options_class`` to a dataclass that derives from MaskedOptions and adds options of its own.
    """
