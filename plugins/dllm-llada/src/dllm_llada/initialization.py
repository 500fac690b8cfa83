"""How fresh weights are drawn, as a pure function of the configuration and the place in the network.

Source: OLMo's initialization, which LLaDA's published ``modeling_llada.py`` keeps.
"""

from __future__ import annotations

import math
from typing import Literal

from dllm_llada.configuration import LLaDAConfig

Role = Literal["embedding", "in", "out", "head"]


def initial_std(config: LLaDAConfig, role: Role, fan_in: int, layer: int = 0) -> tuple[float, float | None]:
    """Standard deviation of a weight matrix and where its normal distribution is cut off, in absolute terms.

    Args:
        config: `init_fn` decides; ``"normal"`` and ``"full_megatron"`` also read `init_std` and `init_cutoff_factor`.
        role: the embedding, a projection into a block's inner space, one back onto the residual stream, or the head.
        fan_in: inputs of the matrix (of the embedding: its width).
        layer: index of the block, 0 first.

    Returns:
        (standard deviation, cutoff or None for an uncut normal distribution)
    """
    # The published code evens out the later division of the logits by sqrt(d_model).
    scale = 0.5 * math.sqrt(config.d_model) if role == "embedding" and config.scale_logits else 1.0
    if config.init_fn == "mitchell":
        std = scale / math.sqrt(fan_in) / (math.sqrt(2 * (layer + 1)) if role == "out" else 1.0)
        return std, 3 * std
    if config.init_fn == "fan_in":
        return scale / math.sqrt(fan_in), None
    if config.init_fn == "kaiming_normal":
        return math.sqrt(2 / fan_in), None
    if config.init_fn == "full_megatron":
        shrink = math.sqrt(2 * config.n_layers)
        std = {"head": config.d_model**-0.5, "out": config.init_std / shrink}.get(role, config.init_std)
        return std, (config.init_cutoff_factor or 3) * std
    # Every projection onto the residual stream is shrunk, as in GPT-2; the published code shrinks the MLP's only.
    std = config.init_std * scale / (math.sqrt(2 * config.n_layers) if role == "out" else 1.0)
    return std, None if config.init_cutoff_factor is None else config.init_cutoff_factor * std
