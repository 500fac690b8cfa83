"""The configuration and model classes of every row of `FAMILIES`, such as `EditFlowQwen3Config` and `...Model`.

Each is the family's own class with one thing changed: the configuration has another model type, the model has heads.
They are made when they are first asked for, so that a family whose plugin is not installed is in nobody's way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import AutoConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from dllm_core.plugins import import_string
from dllm_editflow.models.families import FAMILIES, Family
from dllm_editflow.models.heads import EditFlowModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CONFIGS = {f"EditFlow{row.name}Config": row for row in FAMILIES}
MODELS = {f"EditFlow{row.name}Model": row for row in FAMILIES}


def _config_class(row: Family) -> type[PreTrainedConfig]:
    base = import_string(import_string(row.source).config_class)
    body = {
        "__module__": __name__,
        "__doc__": f"The configuration of {row.title} with edit heads: its own fields and those of `HeadOptions`.",
        "model_type": row.model_type,
    }
    made = type(base)(f"EditFlow{row.name}Config", (base,), body)
    AutoConfig.register(row.model_type, made, exist_ok=True)  # for AutoTokenizer, which reads the model type
    return made


def _model_class(row: Family) -> type[PreTrainedModel]:
    source = import_string(row.source)
    base, config = import_string(source.model_class), __getattr__(f"EditFlow{row.name}Config")
    own_type = import_string(source.config_class).model_type
    if (layout := get_checkpoint_conversion_mapping(own_type)) is not None:  # weights that are stored otherwise
        register_checkpoint_conversion_mapping(row.model_type, layout, overwrite=True)
    body = {
        "__module__": __name__,
        "__doc__": f"{row.title} with edit heads.",
        "config_class": config,
        "is_shifted": source.logits_are_shifted,
        "published_norm": row.published_norm,
    }
    return type(base)(f"EditFlow{row.name}Model", (EditFlowModel, base), body)


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
