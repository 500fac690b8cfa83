"""A thin door for scripts in the style of the field's published example: a model and a tokenizer from arguments.

Other code calls `dllm.load`, which gives both together with the conventions of the model's family.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm_core import registry
from dllm_core.errors import ModelLoadError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dllm_core.data import DataArguments, Prepared
    from dllm_core.models.arguments import ModelArguments


def get_model(model_args: ModelArguments) -> PreTrainedModel:
    """The Hugging Face model that the arguments name, in evaluation mode on its device.

    Raises:
        ModelLoadError: no such model, or none is named and no installed plugin ships one.
        OptionError: an unknown device, dtype or attention implementation.
    """
    from dllm_core.models import load

    return load(
        _name(model_args),
        device=model_args.device,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        revision=model_args.revision,
    ).model


def get_tokenizer(model_args: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model, with the family's mask token and chat template.

    Raises:
        ModelLoadError: no such model, or it has no tokenizer.
    """
    from dllm_core.models.loading import adapter_for, resolve_path

    path = resolve_path(_name(model_args))
    tokenizer = adapter_for(path, None, model_args.revision).load_tokenizer(path, revision=model_args.revision)
    if tokenizer is None:
        raise ModelLoadError(f"{path} has no tokenizer; add its tokenizer.json, or use dllm.load(..., special_ids=...)")
    return tokenizer


def get_dataset(data_args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """The examples that the arguments name, to train and to evaluate on.

    Raises:
        OptionError: no data set is named.
        DataError: the data set is not there, or makes no example.
    """
    from dllm_core.data import load_dataset

    if data_args.dataset_args is None:
        raise OptionError("no data set is named; give --dataset_args, for example a file of JSON lines")
    return load_dataset(
        data_args.dataset_args,
        tokenizer=tokenizer,
        max_length=data_args.max_length,
        truncation=data_args.truncation,
        num_proc=data_args.num_proc,
    )


def _name(model_args: ModelArguments) -> str:
    if model_args.model_name_or_path is not None:
        return model_args.model_name_or_path
    shipped = registry.bundled_checkpoints()
    if not shipped:
        raise ModelLoadError("no model is named and no installed plugin ships one; give --model_name_or_path")
    return shipped[0][1].name
