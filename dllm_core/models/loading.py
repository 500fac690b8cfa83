"""`dllm.load`: from a hub id, a folder or the name of a bundled checkpoint to a `Denoiser`."""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError

from dllm_core import registry
from dllm_core.errors import DllmError, ModelLoadError, OptionError
from dllm_core.models.adapter import ModelAdapter
from dllm_core.models.attention import FLEX
from dllm_core.models.denoiser import Denoiser, known_ids
from dllm_core.models.lora import CONFIG_FILE, adapter_config, adapter_folder, load_lora, quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ReadT = TypeVar("ReadT")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGE_BYTES = 2**30
IMPLEMENTATIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    tokenizer: PreTrainedTokenizerBase | None = None,
    special_ids: Mapping[str, int] | None = None,
    adapter: str | None = None,
    load_in_4bit: bool = False,
    lora: str | Path | None = None,
    attn_implementation: str | None = None,
    logits_are_shifted: bool | None = None,
    revision: str | None = None,
) -> Denoiser:
    """Load a diffusion language model, ready for samplers, objectives and evaluation.

    Never runs code from a checkpoint, and reads weights from safetensors only.

    Args:
        name_or_path: a hub id, a local folder, or the name of a checkpoint that an installed plugin ships.
        device: ``"auto"`` takes the accelerator where there is one.
        dtype: ``"auto"`` takes float32 on the CPU and the checkpoint's own type elsewhere.
        tokenizer: used instead of the checkpoint's.
        special_ids: token ids by name (``mask``, ``eos``, ``pad``, ``bos``, ``eot``); no tokenizer is then needed and
            prompts are token ids.
        adapter: name of the model family where ``config.json`` should not decide.
        load_in_4bit: quantise the layers to 4 bits while they load (bitsandbytes, NF4); also on the CPU.
        lora: folder or hub id of a LoRA adapter that was trained on this checkpoint. Its tokenizer, where it has one,
            is the one that is used.
        attn_implementation: ``"sdpa"``, ``"eager"``, a flash attention, or ``"flex_attention"`` (for GPUs; warns on
            the CPU).
        logits_are_shifted: overrides the shift that the checkpoint's config.json or its family declares.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelLoadError: no such model, no config, no installed family for it, no mask token, or an adapter of another
            model.
        OptionError: an unknown device, dtype or attention implementation, or a package that is not installed.
    """
    target = pick_device(device)
    _check_implementation(attn_implementation, target)
    torch_dtype = _dtype_on(target, dtype)
    adapter_files = None if lora is None else adapter_folder(lora)
    path = resolve_path(name_or_path)
    family = adapter_for(path, adapter, revision)
    config = from_checkpoint(path, lambda: family.load_config(path, revision=revision))
    family.check_config(config)
    if tokenizer is None:
        tokenizer = _tokenizer_of(path, family, revision, adapter_files, needed=special_ids is None)
    else:
        tokenizer = family.prepare_tokenizer(tokenizer)
    known_ids(tokenizer, special_ids or {}, family)  # a checkpoint without a mask token fails before its weights load
    quantized = {"quantization": _quantization_of(family, target, torch_dtype)} if load_in_4bit else {}
    with _bar_for_large_models(path):
        model = from_checkpoint(
            path,
            lambda: family.load_model(
                path, config, dtype=torch_dtype, attn_implementation=attn_implementation, revision=revision, **quantized
            ),
        )
    model = model if load_in_4bit else model.to(target)  # quantised weights were loaded where they belong
    denoiser = Denoiser(model.eval(), family, tokenizer, special_ids=special_ids, logits_are_shifted=logits_are_shifted)
    if adapter_files is None:
        return denoiser
    return load_lora(denoiser, adapter_files, keep_shift=logits_are_shifted is not None)


def _check_implementation(attn_implementation: str | None, device: torch.device) -> None:
    if attn_implementation is not None and attn_implementation not in IMPLEMENTATIONS:
        raise OptionError(
            f"attn_implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {attn_implementation!r}"
        )
    if attn_implementation == FLEX and device.type == "cpu":
        warnings.warn(
            "torch computes flex_attention wrongly on some CPUs, where the number of keys is 8 more than a multiple of "
            "16; use attn_implementation='sdpa' there",
            stacklevel=3,
        )


def _dtype_on(device: torch.device, dtype: torch.dtype | str) -> torch.dtype | str:
    """The type asked for; half precision is slow and coarse on most CPUs, so ``"auto"`` does not mean it there."""
    chosen = pick_dtype(dtype)
    return torch.float32 if chosen == "auto" and device.type == "cpu" else chosen


def _quantization_of(family: ModelAdapter, device: torch.device, dtype: torch.dtype | str) -> Mapping[str, object]:
    if "quantization" not in inspect.signature(family.load_model).parameters:
        raise OptionError(
            f"{type(family).__name__} has its own way of loading, which cannot quantise; leave out 4 bits"
        )
    return quantization(device, dtype)


def denoiser_from(
    denoiser: Denoiser | None, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None
) -> Denoiser:
    """The denoiser itself, or one made from a model whose family is known by its model type.

    Raises:
        OptionError: both or neither are given.
        ModelLoadError: no installed plugin serves the model.
    """
    if (denoiser is None) == (model is None):
        raise OptionError("give either a denoiser (from dllm.load) or model=..., and not both")
    if denoiser is not None:
        return denoiser
    component = registry.adapter_for_model_type(model.config.model_type)
    if component is None:
        raise ModelLoadError(
            f"no installed plugin serves model_type {model.config.model_type!r}; install its plugin or build a Denoiser"
        )
    family = registry.load("adapter", component.full_id)()
    return Denoiser(model, family, None if tokenizer is None else family.prepare_tokenizer(tokenizer))


def pick_device(device: str | torch.device) -> torch.device:
    """``"auto"``: the accelerator that torch sees, else the CPU.

    Raises:
        OptionError: no such device here.
    """
    if device == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        torch.empty(0, device=device)  # a name that torch knows may still be a device that is not here
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: torch was built without it
        raise OptionError(
            f"device must be 'auto', 'cpu', or one that torch sees here, such as 'cuda', 'cuda:1' or 'mps'; got "
            f"{device!r} ({_first_line(error)})"
        ) from error


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype | str:
    """A torch dtype by name; ``"auto"`` stays as it is.

    Raises:
        OptionError: not a floating-point type, or an unknown name.
    """
    if dtype == "auto" or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    if dtype not in DTYPES:
        raise OptionError(f"dtype must be 'auto' or one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


def resolve_path(name_or_path: str | Path) -> str:
    """A folder stays, the name of a bundled checkpoint becomes its folder, anything else is a hub id."""
    name = str(name_or_path)
    if name and Path(name).is_dir():  # the empty path would be the working directory
        return name
    bundled = registry.find_bundled(name)
    if bundled is not None:
        return str(bundled)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        shipped = ", ".join(checkpoint.name for _, checkpoint in registry.bundled_checkpoints()) or "none"
        raise ModelLoadError(
            f"no model {name!r}: not a folder here, not a bundled checkpoint ({shipped}), and not a hub id "
            "of the form owner/name"
        )
    return name


def adapter_for(path: str, adapter: str | None = None, revision: str | None = None) -> ModelAdapter:
    """The family of a checkpoint: the one named, or the one that serves the model type in its ``config.json``.

    Raises:
        ModelLoadError: no config, or no installed plugin serves its model type.
    """
    config = read_config(path, revision)
    if adapter is not None:
        return registry.load("adapter", adapter)().for_checkpoint(config)
    model_type = config.get("model_type")
    component = registry.adapter_for_model_type(model_type) if model_type else None
    if component is None:
        raise ModelLoadError(f"{path}: {_why_not_served(config)}{registry.missing_plugins_hint()}")
    return registry.load("adapter", component.full_id)().for_checkpoint(config)


def _why_not_served(config: Mapping[str, object]) -> str:
    """What to do with a checkpoint that no adapter serves."""
    model_type, adapters = config.get("model_type"), registry.components("adapter")
    if not model_type:
        return "its config.json names no model_type, so no family can be found; add it, or name the family: adapter=..."
    if converts := next((component for component in adapters if model_type in component.spec.converts), None):
        return (
            f"model_type {model_type!r} generates from left to right; make a diffusion model of it first: "
            f"dllm convert --to {converts.plugin} MODEL FOLDER"
        )
    served = ", ".join(sorted({name for component in adapters for name in component.spec.model_types})) or "nothing"
    code = "the code that its config.json asks for (auto_map) is never run; " if "auto_map" in config else ""
    return (
        f"no installed plugin serves model_type {model_type!r}; {code}installed ones serve {served}; install the "
        "plugin of that family ('dllm plugins' lists yours), or write one (docs/tutorial-first-plugin.md)."
    )


def read_config(path: str, revision: str | None) -> dict[str, object]:
    """What ``config.json`` of a folder or hub id holds.

    Raises:
        ModelLoadError: there is none, or it is not JSON.
    """
    file = Path(path) / "config.json" if Path(path).is_dir() else _hub_config(path, revision)
    if not file.is_file() and (file.parent / CONFIG_FILE).is_file():
        base = adapter_config(file.parent).get("base_model_name_or_path")
        raise ModelLoadError(f"{path} is a LoRA adapter, not a whole model; load its base ({base}) with lora={path!r}")
    if not file.is_file():
        raise ModelLoadError(f"{path} has no config.json, so it is not a checkpoint; give the folder that holds one")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{file} is not valid JSON ({error}); download the checkpoint again") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{file} must hold a JSON object; download the checkpoint again")
    return config


def _hub_config(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelLoadError(
            f"no model {name!r}: no such folder, and the hub did not give it ({_first_line(error)}); check the name "
            "and the network"
        ) from error


def _tokenizer_of(
    path: str, family: ModelAdapter, revision: str | None, adapter_files: Path | None, *, needed: bool
) -> PreTrainedTokenizerBase | None:
    if adapter_files is not None and family.has_tokenizer(str(adapter_files)):
        path, revision = str(adapter_files), None  # what the adapter was trained with, chat template and all
    try:
        return from_checkpoint(path, lambda: family.load_tokenizer(path, revision=revision))
    except ModelLoadError:
        if needed or Path(path).is_dir():  # a folder's own tokenizer that cannot be read is worth knowing of
            raise
        return None


@contextmanager
def _bar_for_large_models(path: str) -> Iterator[None]:
    """Hugging Face draws a progress bar for every load; here only where there is something to wait for."""
    from transformers.utils import logging

    size = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    if (sys.stderr.isatty() and size >= LARGE_BYTES) or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def from_checkpoint(path: str, read: Callable[[], ReadT]) -> ReadT:
    """Say which checkpoint it was when Hugging Face cannot read a part of it."""
    try:
        return read()
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        # RuntimeError: a weight of another shape. ImportError: a package that the attention implementation needs.
        if isinstance(error, DllmError):
            raise
        raise ModelLoadError(f"{path}: {_first_line(error)}{_cure(error, path)}") from error


def _cure(error: Exception, path: str) -> str:
    """What to do, where that is known: the weights are damaged, or there are none."""
    if isinstance(error, SafetensorError):
        return "; its weights are damaged, download the checkpoint again"
    if Path(path).is_dir() and not any(Path(path).glob("*.safetensors")):
        return " It holds no weights; give a folder with a .safetensors file"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
