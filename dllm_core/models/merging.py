"""From a base and its LoRA adapter to one checkpoint of whole weights."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dllm_core.errors import ModelLoadError, OptionError
from dllm_core.models.loading import adapter_for, load, pick_dtype, resolve_path
from dllm_core.models.lora import adapter_folder, merge_lora
from dllm_core.models.saving import check_free, save_checkpoint

if TYPE_CHECKING:
    from dllm_core.models.denoiser import Denoiser


def merge_checkpoint(
    base: str | Path, adapter: str | Path, output: str | Path, *, dtype: str = "auto", revision: str | None = None
) -> Denoiser:
    """Write the merged checkpoint to a new folder, which `dllm_core.load` reads, and return what was written.

    The sums are computed in float32 and rounded once. Weights that have no adapter keep their bits. The tokenizer is
    the adapter's where it has one, the configuration the base's, with the adapter's shift of the logits.

    Args:
        base: as of `dllm_core.load`.
        adapter: folder or hub id.
        dtype: of the merged weights; ``"auto"``: the base's own.
        revision: of a base on the hub.

    Raises:
        OptionError: the output folder is not free, or the base is quantised.
        ModelLoadError: no such base or adapter, or they do not belong together.
    """
    output = Path(output)
    check_free(output)
    adapter_folder(adapter)
    own = _own_dtype(base, revision)
    # Merging scores no token: a base without a tokenizer needs no mask.
    denoiser = load(base, lora=adapter, device="cpu", dtype=own, revision=revision, special_ids={"mask": 0})
    dtypes = {name: tensor.dtype for name, tensor in _tensors(denoiser.model.get_base_model())}
    denoiser.model.float()
    merged = merge_lora(denoiser)
    wanted = own if dtype == "auto" else pick_dtype(dtype)
    for name, tensor in _tensors(merged.model):
        tensor.data = tensor.data.to(wanted if dtypes[name] == own else dtypes[name])
    config = merged.model.config
    if merged.logits_are_shifted != merged.adapter.shifts_logits(config):
        config.logits_are_shifted = merged.logits_are_shifted  # what the adapter was trained with; `load` reads it
    save_checkpoint(merged.model, merged.tokenizer, output)
    return merged


def _own_dtype(base: str | Path, revision: str | None) -> torch.dtype:
    path = resolve_path(base)
    config = adapter_for(path, revision=revision).load_config(path, revision=revision)
    if getattr(config, "quantization_config", None):
        raise OptionError(f"{path} is quantised, and a merged adapter is lost in the rounding; give the whole weights")
    own = config.dtype or torch.float32
    if not isinstance(own, torch.dtype):
        raise ModelLoadError(f"{path}: config.json has an unknown dtype {own!r}; write float32, bfloat16 or float16")
    return own


def _tensors(model: torch.nn.Module) -> chain[tuple[str, torch.Tensor]]:
    """Parameters and buffers by the names that they have without an adapter."""
    named = chain(model.named_parameters(), model.named_buffers())
    return ((name.replace(".base_layer.", "."), tensor) for name, tensor in named if ".lora_" not in name)
