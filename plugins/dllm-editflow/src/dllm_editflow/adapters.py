"""What the families with edit heads declare to the core: `EditFlowQwen3Adapter` and one more class a row of `FAMILIES`.

Each is the family's own adapter, conventions and tokenizer and all, with other classes behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from dllm_core.models import ModelAdapter
from dllm_core.plugins import import_string
from dllm_editflow.models.families import FAMILIES, HEADS, Family

ADAPTERS = {f"EditFlow{row.name}Adapter": row for row in FAMILIES}


class EditFlowAdapter:
    """Mixed in before a family's adapter."""

    family: ClassVar[Family]
    supports_edits: ClassVar[bool] = True  # what the objective and the sampler of this plugin need
    extra_heads: ClassVar[tuple[str, ...]] = HEADS

    def for_checkpoint(self, config: Mapping[str, object]) -> ModelAdapter:
        """This one: the model type says all."""
        return self


def _adapter_class(row: Family) -> type[ModelAdapter]:
    source = import_string(row.source)
    body = {
        "__module__": __name__,
        "__doc__": f"{row.title} with edit heads.",
        "family": row,
        "model_types": (row.model_type,),
        "config_class": f"dllm_editflow.models.classes:EditFlow{row.name}Config",
        "model_class": f"dllm_editflow.models.classes:EditFlow{row.name}Model",
    }
    return type(f"EditFlow{row.name}Adapter", (EditFlowAdapter, source), body)


def __getattr__(name: str) -> type[ModelAdapter]:
    if name not in ADAPTERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, _adapter_class(ADAPTERS[name]))


def __dir__() -> list[str]:
    return sorted({*globals(), *ADAPTERS})
