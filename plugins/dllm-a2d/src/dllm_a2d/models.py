"""transformers' causal models, attending in both directions.

A configuration with ``is_causal`` off makes transformers build a bidirectional mask, and the saved ``config.json``
keeps it off; nothing else differs from the causal model, whose weights keep their names.

For each row of `ARCHITECTURES` two classes are here, such as `A2DQwen3Config` and `A2DQwen3LMHeadModel`, made
when they are first asked for: loading one architecture does not import them all.

Source: transformers 5.23, ``masking_utils.create_causal_mask``; class names and model types of ZHZisZZ/dllm at ca17675.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from dllm_a2d.architectures import ARCHITECTURES, Architecture

CONFIGS = {f"A2D{row.name}Config": row for row in ARCHITECTURES}
MODELS = {f"A2D{row.name}LMHeadModel": row for row in ARCHITECTURES}


def look_both_ways(config: PreTrainedConfig) -> None:
    """Switch the causal mask off, and the sliding windows.

    A window would hide what the attention patterns of block diffusion show, and the published converted models have
    none. Layers keep their kind, as that also decides on their rotary embedding (Gemma 3): their window then is as wide
    as the context.
    """
    config.is_causal = False
    if not hasattr(config, "sliding_window"):
        return
    has_local_layers = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    config.sliding_window = config.max_position_embeddings if has_local_layers else None


def _config_class(row: Architecture) -> type[PreTrainedConfig]:
    base = getattr(transformers, row.config)

    def __post_init__(self: PreTrainedConfig, **kwargs: Any) -> None:  # further keys of config.json
        base.__post_init__(self, **kwargs)
        look_both_ways(self)

    body = {
        "__module__": __name__,
        "__doc__": f"The configuration of a {row.title} model that attends in both directions.",
        "__post_init__": __post_init__,
        "model_type": row.model_type,
    }
    made = type(base)(f"A2D{row.name}Config", (base,), body)
    AutoConfig.register(row.model_type, made, exist_ok=True)  # for AutoTokenizer, which reads the model type
    return made


def _model_class(row: Architecture) -> type[transformers.PreTrainedModel]:
    base = getattr(transformers, row.model)
    if (layout := get_checkpoint_conversion_mapping(row.source_type)) is not None:  # experts, stored one by one
        register_checkpoint_conversion_mapping(row.model_type, layout, overwrite=True)
    body = {
        "__module__": __name__,
        "__doc__": f"{row.title} with its vocabulary head, attending in both directions; logits (B, L, V).",
        "config_class": __getattr__(f"A2D{row.name}Config"),
    }
    return type(base)(f"A2D{row.name}LMHeadModel", (base,), body)


def __getattr__(name: str) -> type:
    if name in globals():
        return globals()[name]
    if name in CONFIGS:
        return globals().setdefault(name, _config_class(CONFIGS[name]))
    if name in MODELS:
        return globals().setdefault(name, _model_class(MODELS[name]))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *CONFIGS, *MODELS})
