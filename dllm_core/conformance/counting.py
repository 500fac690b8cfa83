"""Counts what a model really computes, with hooks, to hold reported counts against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import weak

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
        host_syncs: questions to the device outside of those calls; for each an accelerator would be waited for.
    """

    forward_passes: int = 0
    positions: int = 0
    logit_rows: int = 0
    with_cache: int = 0
    cache_bytes: int = 0
    host_syncs: int = 0


ASKING = ("tolist", "item", "cpu", "numpy", "nonzero", "masked_select", "unique", "argwhere")
ASKING_BY_TYPE = ("__bool__", "__int__", "__float__", "__index__")
MAKING = (torch.tensor, torch.arange, torch.zeros, torch.ones, torch.full)


class Questions(TorchFunctionMode):
    """Counts what would have to wait for an accelerator, on a machine that has none.

    What is made without a device stands on the host wherever the model is, and so does what is computed of nothing
    else; to read that asks nobody. Of all other tensors a value, a truth or a shape that depends on values has to be
    waited for.
    """

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts, self.paused = counts, False
        self.on_host = weak.WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.paused:
            return result
        given = [each for each in _flat((args, kwargs)) if isinstance(each, Tensor)]
        asks = self._asks(func, args) and not all(each in self.on_host for each in given)
        self.counts.host_syncs += asks
        stays = all(each in self.on_host for each in given) if given else func in MAKING and "device" not in kwargs
        fetched = asks and getattr(func, "__name__", "") == "cpu"
        if (stays or fetched) and isinstance(result, Tensor):
            self.on_host[result] = True
        return result

    def _asks(self, func: Callable, args: tuple) -> bool:
        name = getattr(func, "__name__", "")
        if name == "__getitem__":  # by truth: how many there are is a question
            return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in _flat(args[1:]))
        return name in ASKING + ASKING_BY_TYPE


def _flat(values: object) -> Iterator[object]:
    if isinstance(values, Mapping):
        values = tuple(values.values())
    if isinstance(values, tuple | list):
        for value in values:
            yield from _flat(value)
    else:
        yield values


@contextmanager
def counted(denoiser: Denoiser) -> Iterator[Counts]:
    """Counts of all forward passes inside the ``with`` block."""
    counts = Counts()
    questions = Questions(counts)

    def before_model(model: nn.Module, inputs: tuple, keywords: Mapping[str, object]) -> None:
        ids = keywords["input_ids"] if "input_ids" in keywords else inputs[0]
        counts.forward_passes += 1
        counts.positions += ids.numel()
        counts.with_cache += keywords.get("past_key_values") is not None
        questions.paused = True  # what the model asks is the model's business

    def after_model(model: nn.Module, inputs: tuple, keywords: Mapping[str, object], output: object) -> None:
        questions.paused = False
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
        with questions:
            yield counts
    finally:
        for handle in handles:
            handle.remove()
