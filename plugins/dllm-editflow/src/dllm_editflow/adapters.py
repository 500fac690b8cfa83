"""What the families with edit heads declare to the core: `EditFlowQwen3Adapter` and one more class a row of `FAMILIES`.

Each is the family's own adapter, conventions and tokenizer and all, with other classes behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dllm_core.models import ModelAdapter
from dllm_core.plugins import import_string
from dllm_editflow.models.families import FAMILIES, HEADS, Family

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ADAPTERS = {f"EditFlow{row.name}Adapter": row for row in FAMILIES}


class EditFlowAdapter:
    """Mixed in before a family's adapter."""

    family: ClassVar[Family]
    supports_edits: ClassVar[bool] = True  # what the objective and the sampler of this plugin need
    extra_heads: ClassVar[tuple[str, ...]] = HEADS

    def for_checkpoint(self, config: Mapping[str, object]) -> ModelAdapter:
        """This one: the model type says all."""
        return self

    def load_tokenizer(self, path: str, *, revision: str | None = None) -> PreTrainedTokenizerBase | None:
        """As the family's own; transformers is told of the model type first, which it reads beside the tokenizer."""
        import_string(self.config_class)
        return super().load_tokenizer(path, revision=revision)

    def load_model(
        self,
        path: str,
        config: PreTrainedConfig,
        *,
        quantization: Mapping[str, object] | None = None,
        **options: Any,
    ) -> PreTrainedModel:
        """As the family's own; in 4 bits, the heads stay whole: they are trained, which packed weights cannot be."""
        if quantization is not None:
            sparing = self._sparing_heads(config, quantization["quantization_config"])
            quantization = {**quantization, "quantization_config": sparing}
        return super().load_model(path, config, quantization=quantization, **options)

    def _sparing_heads(self, config: PreTrainedConfig, method: BitsAndBytesConfig) -> BitsAndBytesConfig:
        """The same method for all that it would be used on, but the heads. A list replaces transformers' own choice."""
        import torch
        from transformers.quantizers.base import get_keys_to_not_convert

        with torch.device("meta"):
            model = self.build_model(copy.deepcopy(config))
        sparing = copy.deepcopy(method)
        sparing.llm_int8_skip_modules = [*get_keys_to_not_convert(model), *HEADS]
        return sparing


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
