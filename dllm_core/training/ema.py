"""An exponential moving average of the weights, kept beside those that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dllm_core.errors import OptionError

FILE = "ema.safetensors"


class WeightAverage:
    """The average of a model's trainable weights over the optimizer steps, in float32.

    After update n (from 1) every weight is ``average + (1 - d) * (weight - average)`` with
    ``d = min(decay, (1 + n) / (10 + n))``: the first steps, far from where training ends, are soon forgotten.

    Source: Polyak averaging with the warm-up of TensorFlow's ExponentialMovingAverage (num_updates), which the code of
        MDLM (arXiv:2406.07524) uses with decay 0.9999.

    Args:
        model: holds the weights; those without gradient (a frozen base below LoRA) have no average.
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.updates = 0
        self.average = {name: weight.detach().float().clone() for name, weight in self._weights()}

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights in, after an optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, weight in self._weights():
            self.average[name].lerp_(weight.detach().float(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the averaged weights inside, and its own again afterwards, to the last bit."""
        own = {name: weight.detach().clone() for name, weight in self._weights()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, weight in self._weights():
            weight.copy_(values[name])

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint."""
        tensors = {name: value.contiguous() for name, value in self.average.items()}
        save_file(tensors, folder / FILE, metadata={"updates": str(self.updates)})

    def load(self, folder: Path) -> None:
        """Take up the average of a checkpoint.

        Raises:
            OptionError: the checkpoint has none, or one of other weights.
        """
        if not (folder / FILE).is_file():
            raise OptionError(
                f"{folder} was trained without an average of the weights; leave out ema_decay, or start anew with it"
            )
        loaded = load_file(folder / FILE)
        different = [name for name in {*loaded, *self.average} if _shape(loaded, name) != _shape(self.average, name)]
        if different:
            raise OptionError(
                f"the average in {folder} is of other weights ({sorted(different)[0]} ...); resume what it came from"
            )
        for name, value in self.average.items():
            value.copy_(loaded[name])
        with safe_open(folder / FILE, framework="pt") as file:
            self.updates = int(file.metadata()["updates"])


def _shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
