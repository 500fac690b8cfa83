"""From a diffusion language model to one with edit heads: ``dllm convert SOURCE OUT --to editflow``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging

from dllm_core.errors import ModelLoadError
from dllm_core.models.converting import Converted
from dllm_core.models.loading import adapter_for, read_config
from dllm_core.plugins import import_string
from dllm_editflow import adapters
from dllm_editflow.models import classes
from dllm_editflow.models.families import FAMILIES, HEADS, Family
from dllm_editflow.models.options import CONVERTED, HeadOptions
from dllm_editflow.models.rates import PRIOR

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from dllm_core.models.adapter import ModelAdapter

OF_THE_SOURCE = ("model_type", "architectures", "auto_map", "transformers_version")


def convert(
    source: str,
    *,
    dtype: torch.dtype | str,
    logits_are_shifted: bool = False,
    revision: str | None = None,
    heads: HeadOptions = CONVERTED,
) -> Converted:
    """A converter of `dllm_core.models.converting`.

    The source's weights keep their bits and names, and its logits stay what they were. The heads for substituted and
    inserted tokens are copies of the vocabulary head; rates are the same everywhere, 5 edits in 100 tokens; the time
    changes nothing yet.

    Args:
        logits_are_shifted: can only say what the source does already: its weights are not made for anything else.
        heads: how the heads are built and read.

    Raises:
        ModelLoadError: a family without edit heads, a shift that is not the source's, logits that are changed behind
            the vocabulary head, or quantised weights.
    """
    origin = adapter_for(source, revision=revision)
    row = family_of(source, origin)
    if read_config(source, revision).get("quantization_config"):
        raise ModelLoadError(f"{source} is quantised; convert the whole weights")
    config = with_heads(row, origin.load_config(source, revision=revision), heads)
    if logits_are_shifted and not origin.shifts_logits(config):
        raise ModelLoadError(f"{source} scores each token in its own row and keeps doing so; leave out --shift")
    if not origin.logits_end_at_head(config):
        raise ModelLoadError(f"{source} changes its logits behind the vocabulary head, which a copy of it would not")
    tokenizer = origin.load_tokenizer(source, revision=revision)
    model = _load(row, source, config, dtype, revision)
    copy_head(model)
    notes = [f"edit heads for {row.title}: {', '.join(name for name in HEADS if hasattr(model, name))}"]
    notes.append(f"rates start at {sum(PRIOR):.0%} of the tokens; train it: dllm train --help")
    return Converted(model, tokenizer, tuple(notes))


def family_of(source: str, origin: ModelAdapter) -> Family:
    """The row of `FAMILIES` for a checkpoint's own adapter.

    Raises:
        ModelLoadError: there is none, or the checkpoint has edit heads already.
    """
    if isinstance(origin, adapters.EditFlowAdapter):
        raise ModelLoadError(f"{source} has edit heads already ({origin.family.model_type}); load it with dllm.load")
    target = f"{type(origin).__module__}:{type(origin).__name__}"
    row = next((row for row in FAMILIES if row.source == target), None)
    if row is None:
        titles = ", ".join(row.title for row in FAMILIES)
        raise ModelLoadError(
            f"{source} is served by {type(origin).__name__}, which has no edit heads; {titles} have; another family "
            "is one row in dllm_editflow/models/families.py"
        )
    return row


def with_heads(row: Family, source: PreTrainedConfig, heads: HeadOptions = CONVERTED) -> PreTrainedConfig:
    """The source's configuration as that of the model with heads."""
    own = {name: value for name, value in source.to_dict().items() if name not in OF_THE_SOURCE}
    return getattr(classes, f"EditFlow{row.name}Config")(**own | asdict(heads))


def _load(
    row: Family, source: str, config: PreTrainedConfig, dtype: torch.dtype | str, revision: str | None
) -> PreTrainedModel:
    """The model with the source's weights, its heads as `EditFlowModel` draws them."""
    made = import_string(f"dllm_editflow.models.classes:EditFlow{row.name}Model")
    with _quiet():
        model, found = made.from_pretrained(
            source, config=config, dtype=dtype, revision=revision, use_safetensors=True, output_loading_info=True
        )
    if missing := sorted(name for name in found["missing_keys"] if name.partition(".")[0] not in HEADS):
        raise ModelLoadError(
            f"{source} lacks {len(missing)} weights of its architecture ({missing[0]} ...); the checkpoint is not whole"
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report that the heads are missing in the source, which is why one converts."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@torch.no_grad()
def copy_head(model: PreTrainedModel) -> None:
    """Start substitutions and insertions as copies of the vocabulary head, where they have projections of their own."""
    own = model.get_output_embeddings()
    for name in ("sub_logits", "ins_logits"):
        if (head := getattr(model, name, None)) is None:
            continue
        head.weight.copy_(own.weight)
        if own.bias is not None:
            head.bias.copy_(own.bias)
