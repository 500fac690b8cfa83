"""From a causal checkpoint of transformers to a diffusion model: the same weights, a mask token, both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import GenerationConfig

from dllm_a2d import adapter as adapters
from dllm_a2d.architectures import ARCHITECTURES, Architecture
from dllm_core.errors import ModelLoadError
from dllm_core.models.converting import Converted, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# A vocabulary that is no multiple of it makes the largest matrix product slow on an accelerator.
VOCABULARY_MULTIPLE = 64
OF_THE_SOURCE = ("model_type", "architectures", "auto_map", "transformers_version", "is_causal")
HOW_TO_ADD = "another architecture is one row in dllm_a2d/architectures.py, see the README of dllm-a2d"


def convert(
    source: str, *, dtype: torch.dtype | str, logits_are_shifted: bool = False, revision: str | None = None
) -> Converted:
    """A converter of `dllm_core.models.converting`.

    Weights keep their bits and names. The mask token goes behind the last token; where the embedding has no row for it,
    embedding and head grow, and the new rows are the mean of the old ones.

    Raises:
        ModelLoadError: an architecture that is not supported, quantised weights, or a checkpoint without a tokenizer.
    """
    fields = read_config(source, revision)
    row = architecture_of(source, fields)
    family = getattr(adapters, f"A2D{row.name}Adapter")()
    tokenizer = family.load_tokenizer(source, revision=revision)
    if tokenizer is None:
        raise ModelLoadError(f"{source} has no tokenizer, which the mask token is added to; put its files beside it")
    config = converted_config(row, source, revision)
    config.logits_are_shifted = logits_are_shifted
    model = family.load_model(source, config, dtype=dtype, revision=revision)
    model.generation_config = GenerationConfig()  # the causal model's sampling is not that of a diffusion model
    notes = [f"mask token {tokenizer.mask_token!r} has id {tokenizer.mask_token_id}"]
    if grown := make_room(model, tokenizer.mask_token_id):
        notes.append(f"embedding grown from {grown} to {model.get_input_embeddings().weight.shape[0]} rows")
    if "auto_map" in fields:
        notes.append("the checkpoint brings code of its own, which is not needed and was not run")
    return Converted(model, tokenizer, tuple(notes))


def architecture_of(source: str, fields: Mapping[str, object]) -> Architecture:
    """The row of `ARCHITECTURES` for what a ``config.json`` holds.

    Raises:
        ModelLoadError: there is none, or the checkpoint is converted already, or quantised.
    """
    model_type = fields.get("model_type")
    if model_type in {row.model_type for row in ARCHITECTURES}:
        raise ModelLoadError(f"{source} is a diffusion model already ({model_type}); load it with dllm.load")
    rows = {row.source_type: row for row in ARCHITECTURES}
    if model_type not in rows:
        own_code = " It asks for code of its own, which is never run." if "auto_map" in fields else ""
        raise ModelLoadError(
            f"{source} has model_type {model_type!r}, which cannot be converted; supported are {', '.join(rows)}; "
            f"{HOW_TO_ADD}.{own_code}"
        )
    if fields.get("quantization_config"):
        raise ModelLoadError(f"{source} is quantised; convert the whole weights")
    return rows[model_type]


def converted_config(row: Architecture, source: str, revision: str | None) -> PreTrainedConfig:
    """The causal model's configuration as one of `dllm_a2d.models`."""
    from dllm_a2d import models

    own = getattr(transformers, row.config).from_pretrained(source, revision=revision).to_dict()
    return getattr(models, f"A2D{row.name}Config")(**{k: v for k, v in own.items() if k not in OF_THE_SOURCE})


@torch.no_grad()
def make_room(model: PreTrainedModel, token: int) -> int | None:
    """Give a token a row where the embedding has none; the number of rows before, None where nothing had to grow."""
    rows = model.get_input_embeddings().weight.shape[0]
    if token < rows:
        return None
    model.resize_token_embeddings(token + 1, pad_to_multiple_of=VOCABULARY_MULTIPLE, mean_resizing=False)
    for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:  # one where tied
        weight[rows:] = weight[:rows].float().mean(0).to(weight.dtype)
    return rows
