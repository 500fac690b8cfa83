"""Counts what a model really computes, with hooks, to hold reported counts against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from dllm_core.models.denoiser import Denoiser


@dataclass
class Counts:
    """What the model was asked for.

    Args:
        forward_passes: calls of the model.
        positions: positions of all its inputs, padding included.
        logit_rows: rows that its vocabulary head projected.
        with_cache: calls that brought a key-value cache.
        cache_bytes: the most memory that the keys and values of such a cache held after a call.
    """

    forward_passes: int = 0
    positions: int = 0
    logit_rows: int = 0
    with_cache: int = 0
    cache_bytes: int = 0


@contextmanager
def counted(denoiser: Denoiser) -> Iterator[Counts]:
    """Counts of all forward passes inside the ``with`` block."""
    counts = Counts()

    def before_model(model: nn.Module, inputs: tuple, keywords: Mapping[str, object]) -> None:
        ids = keywords["input_ids"] if "input_ids" in keywords else inputs[0]
        counts.forward_passes += 1
        counts.positions += ids.numel()
        counts.with_cache += keywords.get("past_key_values") is not None

    def after_model(model: nn.Module, inputs: tuple, keywords: Mapping[str, object], output: object) -> None:
        cache = keywords.get("past_key_values")
        if cache is not None:
            kept = [each for layer in cache.layers for each in (layer.keys, layer.values)]
            counts.cache_bytes = max(counts.cache_bytes, sum(each.nbytes for each in kept))

    def after_head(head: nn.Module, inputs: tuple, logits: Tensor) -> None:
        counts.logit_rows += logits.shape[:-1].numel()

    handles = [
        denoiser.model.register_forward_pre_hook(before_model, with_kwargs=True),
        denoiser.model.register_forward_hook(after_model, with_kwargs=True),
        denoiser.bare_model.get_output_embeddings().register_forward_hook(after_head),
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
