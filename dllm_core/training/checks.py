"""What is looked at before the first step: data that teaches something, options and checkpoints that go together.

A training that cannot work must fail here, in seconds, and not after the model has been sharded, or hours later.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import nn
from torch.utils.data import IterableDataset

from dllm_core.errors import DataError, OptionError
from dllm_core.models.lora import check_same_adapter
from dllm_core.objectives.base import IGNORED_LABEL
from dllm_core.training.ema import FILE as AVERAGE_FILE

if TYPE_CHECKING:
    import datasets

    from dllm_core.models.denoiser import Denoiser
    from dllm_core.training.arguments import DiffusionArguments

PEEKED = 256  # examples of a stream that are looked at; of a list all are
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")

# ------------------------------------------------------------------------------------------------------------ data


def check_examples(dataset: Iterable, context_length: int | None, *, kind: str = "training") -> None:
    """Raise where no example has a token to learn, or one is longer than the model reads.

    Args:
        dataset: a list or Hugging Face dataset is looked at whole, a stream at its first `PEEKED` examples (a stream
            that can be read only once not at all). Examples without ``input_ids`` are another objective's business.
        kind: what the examples are for: evaluation should not fail hours later either.

    Raises:
        DataError: see above, or there is no example at all.
    """
    if isinstance(dataset, Iterator):
        return
    count = 0
    for count, example in enumerate(_examples(dataset), 1):  # noqa: B007
        if teaches(example):
            break
    else:
        if count == 0:
            raise DataError(f"the {kind} data hold no example; check the split and what was filtered out")
        raise DataError(
            f"none of {count} {kind} examples has a token to learn: every label is {IGNORED_LABEL}; check "
            "mask_prompt_loss, and whether truncation cut the responses off"
        )
    longest = max(_lengths(dataset), default=0)
    if context_length is not None and longest > context_length:
        raise DataError(
            f"one of the {kind} examples is {longest} tokens long, the model reads at most {context_length}; set "
            f"data.max_length to {context_length} or less"
        )


def teaches(example: object) -> bool:
    """Whether an example has a token to learn, as far as can be told."""
    if not isinstance(example, Mapping) or "input_ids" not in example:
        return True
    labels = example.get("labels")
    if labels is None:
        return len(example["input_ids"]) > 0
    return any(label != IGNORED_LABEL for label in torch.as_tensor(labels).tolist())


def _examples(dataset: Iterable) -> Iterator:
    """Examples to look at, in order."""
    if isinstance(dataset, Sequence):
        return iter(dataset)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        return islice(dataset, PEEKED)
    return (dataset[number] for number in range(len(dataset)))


def _lengths(dataset: Iterable) -> Iterable[int]:
    """How many tokens examples have; of a Hugging Face dataset read from its offsets, without reading the tokens."""
    if hasattr(dataset, "data") and "input_ids" in (getattr(dataset, "column_names", None) or ()):
        return _lengths_in_table(dataset)
    few = dataset if isinstance(dataset, Sequence) else islice(_examples(dataset), PEEKED)
    return (len(example["input_ids"]) for example in few if isinstance(example, Mapping) and "input_ids" in example)


def _lengths_in_table(dataset: datasets.Dataset) -> list[int]:
    import pyarrow.compute

    lengths = pyarrow.compute.list_value_length(dataset.data.column("input_ids"))
    if dataset._indices is not None:  # the rows that filter, select and shuffle left
        lengths = lengths.take(dataset._indices.column(0))
    return [pyarrow.compute.max(lengths).as_py() or 0]


# --------------------------------------------------------------------------------------------------------- options


def check_average(args: DiffusionArguments) -> None:
    """Raise where an average of the weights was asked for and cannot be kept.

    Raises:
        OptionError: the weights are spread over processes, or the best checkpoint is to be loaded at the end.
    """
    if args.ema_decay is None:
        return
    plugin = args.deepspeed_plugin
    if args.fsdp or (plugin is not None and plugin.zero_stage == 3):
        raise OptionError("ema_decay needs whole weights on every process; use ddp, zero1 or zero2, or leave it out")
    if args.load_best_model_at_end:
        raise OptionError("ema_decay and load_best_model_at_end do not go together: the average is of the last step")


def check_attention(denoiser: Denoiser, args: DiffusionArguments) -> None:
    """Raise where gradients do not exist: torch has no backward of flex attention on the CPU.

    Raises:
        OptionError: see above.
    """
    if denoiser.attention_implementation == "flex_attention" and args.device.type == "cpu":
        raise OptionError(
            "flex attention cannot be trained on the CPU; set model.attn_implementation to sdpa, or train on a GPU"
        )


# ----------------------------------------------------------------------------------------------------- checkpoints


def check_resume(denoiser: Denoiser, checkpoint: Path, *, averages: bool) -> None:
    """Raise where a checkpoint is not one of this model: Hugging Face would load what fits and go on.

    Args:
        averages: whether this training keeps an average of the weights.

    Raises:
        OptionError: another architecture, other LoRA adapters, an adapter for a whole model or the other way round.
    """
    if not checkpoint.is_dir():
        raise OptionError(f"no checkpoint {str(checkpoint)!r}; give a folder that a training saved")
    if (checkpoint / AVERAGE_FILE).exists() and not averages:
        raise OptionError(f"{checkpoint} holds an average of the weights; set ema_decay as that training did")
    check_same_adapter(denoiser, checkpoint)
    if denoiser.lora is not None:
        return
    model = denoiser.bare_model
    _check_type(model, checkpoint)
    stored = stored_shapes(checkpoint)
    if stored is not None:
        _check_shapes(stored, model, checkpoint)


def _check_type(model: nn.Module, checkpoint: Path) -> None:
    file = checkpoint / "config.json"
    theirs = json.loads(file.read_text(encoding="utf-8")).get("model_type") if file.is_file() else None
    ours = getattr(getattr(model, "config", None), "model_type", None)
    if theirs and ours and theirs != ours:
        raise OptionError(
            f"{checkpoint} is of model type {theirs!r}, this training of {ours!r}; resume with that training's recipe, "
            "or start anew in another folder"
        )


def _check_shapes(stored: Mapping[str, tuple[int, ...]], model: nn.Module, checkpoint: Path) -> None:
    own = model.state_dict(keep_vars=True)
    shapes = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in own.items()}
    places = {own[name].data_ptr() for name in stored if name in own}
    for name in sorted({*stored, *shapes}):
        if name not in stored and own[name].data_ptr() in places:
            continue  # tied: saved under one of its names
        if stored.get(name) != shapes.get(name):
            raise OptionError(
                f"{checkpoint} is of another architecture: weight {name} is {_shape(stored.get(name))} there and "
                f"{_shape(shapes.get(name))} here; resume with that training's recipe, or start anew in another folder"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(shape)


def stored_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the weights of a checkpoint, read from the files' headers; None where it keeps them otherwise."""
    whole, index = (checkpoint / name for name in WEIGHTS)
    if whole.exists():
        return _shapes_in(whole)
    if not index.exists():
        return None
    files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return {name: shape for file in files for name, shape in _shapes_in(checkpoint / file).items()}


def _shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(file, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
