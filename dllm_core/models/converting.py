"""From a checkpoint of another kind to a diffusion model: plugins know how, the core finds them and writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dllm_core import registry
from dllm_core.errors import AmbiguousComponentError, UnknownComponentError, did_you_mean
from dllm_core.models.loading import from_checkpoint, pick_dtype, read_config, resolve_path
from dllm_core.models.saving import check_free, save_checkpoint
from dllm_core.plugins import import_string

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Converted", "convert_checkpoint", "find_converter", "read_config"]


@dataclass(frozen=True)
class Converted:
    """What a converter gives back, still to be written.

    Args:
        model: of a class and with a configuration that an installed adapter loads.
        tokenizer: with the mask token.
        notes: lines for the user: what was added or changed.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...] = ()


Converter = Callable[..., Converted]
"""``converter(source, *, dtype, logits_are_shifted, revision) -> Converted``

``source`` is a folder or hub id, ``dtype`` a torch dtype or ``"auto"`` (the checkpoint's own), ``logits_are_shifted``
the convention that the model is to be trained with, which the converter keeps in the configuration. It raises
`ModelLoadError` for what it cannot convert, before weights are read, and writes nothing.
"""


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    to: str,
    dtype: str = "auto",
    logits_are_shifted: bool = False,
    revision: str | None = None,
) -> Converted:
    """Convert a checkpoint into a new folder, which appears only once it is whole, and return what was written.

    Args:
        source: a hub id or folder.
        to: name of the plugin that converts, or of one of its adapters.
        dtype: of the written weights.
        logits_are_shifted: whether row i of the logits is to score token i + 1, as in the causal model, or token i;
            kept in ``config.json``, where `dllm_core.load` finds it.
        revision: of a hub id.

    Raises:
        UnknownComponentError, AmbiguousComponentError: no such converter, or several.
        ModelLoadError: no such checkpoint, or one that cannot be converted.
        OptionError: an unknown type, or an output folder that is not free.
    """
    output = Path(output)
    converter = find_converter(to)
    wanted = pick_dtype(dtype)
    check_free(output)
    path = resolve_path(source)
    with torch.random.fork_rng(devices=[]):  # Hugging Face draws what is then overwritten
        converted = from_checkpoint(
            path, lambda: converter(path, dtype=wanted, logits_are_shifted=logits_are_shifted, revision=revision)
        )
    save_checkpoint(converted.model, converted.tokenizer, output)
    return converted


def find_converter(name: str) -> Converter:
    """The converter of a plugin or adapter.

    Raises:
        UnknownComponentError, AmbiguousComponentError: none has that name, or the plugin has several.
    """
    offered = [component for component in registry.components("adapter") if component.spec.converter is not None]
    found = [component for component in offered if name in (component.plugin, component.name, component.full_id)]
    targets = {component.spec.converter for component in found}
    if len(targets) == 1:
        return import_string(targets.pop())
    if targets:
        raise AmbiguousComponentError(
            f"several converters are called {name!r}; write {' or '.join(component.full_id for component in found)}"
        )
    plugins = list(dict.fromkeys(component.plugin for component in offered))
    near = did_you_mean(name, [*plugins, *(component.name for component in offered)])
    raise UnknownComponentError(
        f"no installed plugin converts to {name!r}.{near} Converters: {', '.join(plugins) or 'none'}."
        + registry.missing_plugins_hint()
    )
