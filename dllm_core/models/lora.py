"""LoRA: train a few low-rank matrices beside frozen weights, keep them as an adapter, load it, merge it.

An adapter folder is what the peft library writes (``adapter_config.json``, ``adapter_model.safetensors``), and one file
more: `RECORD_FILE` says which base it was trained on, with a few of the base's weights, so that it is never put on
another model of the same shape, and which conventions held.

Source: Hu et al., arXiv:2106.09685 (LoRA); Dettmers et al., arXiv:2305.14314 (QLoRA: the base in 4 bits).

Shapes: R rank, I and O width of a layer's input and output.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_core.config import at_least
from dllm_core.errors import ModelLoadError, OptionError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from dllm_core.models.adapter import ModelAdapter
    from dllm_core.models.denoiser import Denoiser

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
RECORD_FILE = "dllm_lora.json"
ALL_LINEAR = "all-linear"
_SAMPLED_WEIGHTS = 256
_PREFIX = "base_model.model."  # what peft writes before the name of each module


@dataclass(frozen=True, kw_only=True)
class LoraSection:
    """How LoRA is trained; the defaults are those of the published recipes.

    Args:
        r: rank R of the added matrices.
        alpha: their product is scaled by ``alpha / r``.
        dropout: before the added matrices, in [0, 1).
        targets: names of the layers to adapt, as they end in the model (``q_proj``), or ``"all-linear"``; None: those
            that the family declares. The vocabulary head is never adapted.

    Raises:
        OptionError: an option out of range.
    """

    r: int = 128
    alpha: int = 256
    dropout: float = 0.0
    targets: tuple[str, ...] | str | None = None

    def __post_init__(self) -> None:
        at_least("lora.r", self.r, 1)
        at_least("lora.alpha", self.alpha, 1)
        if not 0 <= self.dropout < 1:
            raise OptionError(f"lora.dropout must be at least 0 and below 1, got {self.dropout}; usual are 0 and 0.05")
        if isinstance(self.targets, str) and self.targets != ALL_LINEAR:
            raise OptionError(
                f"lora.targets must be a list of layer names or {ALL_LINEAR!r}, got {self.targets!r}; "
                f"write [{self.targets}]"
            )
        if self.targets is not None and not self.targets:
            raise OptionError("lora.targets is empty; name layers, or leave it out for those of the family")


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """Where an adapter belongs.

    Args:
        base: name or folder of the model that it was trained on.
        model_type: its family.
        logits_are_shifted: the convention that training used.
        weights: one value of some of the base's weights, by name of the weight.
    """

    base: str
    model_type: str
    logits_are_shifted: bool
    weights: dict[str, float]

    def write(self, folder: str | Path) -> None:
        """Into the adapter's folder."""
        (Path(folder) / RECORD_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def add_lora(denoiser: Denoiser, section: LoraSection, *, base: str | None = None, seed: int = 0) -> Denoiser:
    """A denoiser of the same model with fresh LoRA matrices, the only weights that are left to train.

    Args:
        denoiser: its model is changed in place; may be loaded in 4 bits.
        base: what the user calls the model; None: where it was loaded from.
        seed: of the new matrices.

    Raises:
        OptionError: peft is not installed, a target matches no layer, or the model has LoRA already.
    """
    peft = _peft()
    import torch

    model = denoiser.model
    if isinstance(model, peft.PeftModel):
        raise OptionError(
            "the model has a LoRA adapter already; merge it first ('dllm merge'), then train on the result"
        )
    record = AdapterRecord(
        base=base or model.name_or_path,
        model_type=model.config.model_type,
        logits_are_shifted=denoiser.logits_are_shifted,
        weights=sample_weights(model),
    )
    config = lora_config(model, denoiser.adapter, section)
    if getattr(model, "is_quantized", False):
        # Norms, embedding and head in float32. Checkpointing is a matter of the training arguments.
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(model, config)
    return _around(denoiser, wrapped, record)


def lora_config(model: PreTrainedModel, family: ModelAdapter, section: LoraSection) -> object:
    """The ``peft.LoraConfig`` of a section for this model.

    Raises:
        OptionError: a target that matches no layer of the model.
    """
    targets = family.lora_targets if section.targets is None else section.targets
    head = head_name(model)
    if targets != ALL_LINEAR:
        _check_targets(model, targets, head)
    return _peft().LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=targets if targets == ALL_LINEAR else list(targets),
        # A head may be called what a layer of every block is called. A list would be one of endings.
        exclude_modules=None if targets == ALL_LINEAR or head is None else re.escape(head),
        modules_to_save=[name for name in family.extra_heads if hasattr(model, name)] or None,
    )


def load_lora(denoiser: Denoiser, folder: Path, *, keep_shift: bool = False) -> Denoiser:
    """A denoiser of the same model with the adapter in `folder`, for use, not for training.

    Args:
        keep_shift: leave the denoiser's shift alone where the adapter was trained with another.

    Raises:
        ModelLoadError: no adapter there, or one of another base or architecture.
        OptionError: peft is not installed.
    """
    peft = _peft()
    record = read_record(folder)
    check_adapter(denoiser.model, folder, record)
    loaded = _around(denoiser, peft.PeftModel.from_pretrained(denoiser.model, str(folder)).eval(), record)
    if record is not None and not keep_shift:
        loaded.logits_are_shifted = record.logits_are_shifted
    return loaded


def check_adapter(model: PreTrainedModel, folder: Path, record: AdapterRecord | None) -> None:
    """Raise where an adapter was not trained on this very model.

    Raises:
        ModelLoadError: of another family, for layers that this model lacks, or for other weights.
    """
    trained_on = record.base if record is not None else adapter_config(folder).get("base_model_name_or_path")
    advice = f"it was trained on {trained_on!r}; load that model with it"
    if record is not None and record.model_type != model.config.model_type:
        raise ModelLoadError(
            f"adapter {folder} is for model type {record.model_type!r}, this model is {model.config.model_type!r}; "
            f"{advice}"
        )
    _check_layers(model, folder, advice)
    if record is not None and (other := _differing(model, record.weights)):
        raise ModelLoadError(
            f"adapter {folder} was trained on other weights than these ({other[0]} and {len(other) - 1} more of "
            f"{len(record.weights)} differ); {advice}, or delete {RECORD_FILE} from the adapter to use it all the same"
        )


def check_same_adapter(denoiser: Denoiser, checkpoint: Path) -> None:
    """Raise where a checkpoint to resume from does not hold what this training trains.

    Raises:
        OptionError: one has LoRA and the other has not, or their matrices differ in rank, scale or place.
    """
    found = (checkpoint / CONFIG_FILE).is_file()
    if not found and denoiser.lora is None:
        return
    if found != (denoiser.lora is not None):
        here, there = ("full training", "LoRA") if found else ("LoRA", "full training")
        raise OptionError(
            f"{checkpoint} is of {there}, this recipe is for {here}; "
            f"{'add' if found else 'leave out'} section lora, or start anew in another folder"
        )
    saved, own = adapter_config(checkpoint), denoiser.model.peft_config["default"].to_dict()
    for name, shown in (
        ("r", "r"),
        ("lora_alpha", "alpha"),
        ("target_modules", "targets"),
        ("lora_dropout", "dropout"),
    ):
        if _comparable(saved.get(name)) != _comparable(own[name]):
            raise OptionError(
                f"{checkpoint} was trained with lora.{shown}={_comparable(saved.get(name))}, the recipe says "
                f"{_comparable(own[name])}; resume with the same, or start anew in another folder"
            )


def merge_lora(denoiser: Denoiser) -> Denoiser:
    """The same function without the adapter: its matrices are added to the base's weights.

    Raises:
        OptionError: there is no adapter, or the base is quantised: the sum would be rounded to 4 bits.
    """
    if not isinstance(denoiser.model, _peft().PeftModel):
        raise OptionError("there is no LoRA adapter to merge; load the model with lora=FOLDER")
    if getattr(denoiser.model, "is_quantized", False):
        raise OptionError("merging into 4-bit weights loses the adapter in their rounding; load without load_in_4bit")
    merged = _around(denoiser, denoiser.model.merge_and_unload(safe_merge=True), None)
    merged.model.eval()
    return merged


def quantization(device: torch.device, dtype: torch.dtype | str) -> dict[str, object]:
    """What ``from_pretrained`` needs to load into 4-bit NormalFloat with doubly quantised constants.

    Args:
        device: where the weights go.
        dtype: that the layers compute in; ``"auto"``: bfloat16.

    Source: arXiv:2305.14314, section 3.

    Raises:
        OptionError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise OptionError("load_in_4bit needs bitsandbytes: pip install 'dllm-core[quantization]'")
    import torch
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


# ----------------------------------------------------------------------------------------------------- adapter files


def adapter_folder(name_or_path: str | Path) -> Path:
    """The folder of an adapter: a local one, or a copy of a hub id's.

    Raises:
        ModelLoadError: no adapter there, one that is not LoRA, or weights that are not safetensors.
    """
    folder = Path(name_or_path)
    name = str(name_or_path)
    if not folder.is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ModelLoadError(f"no LoRA adapter {name!r}: no such folder, and not a hub id of the form owner/name")
    if not folder.is_dir():
        folder = _from_hub(name)
    if not (folder / CONFIG_FILE).is_file():
        hint = "; it holds a whole model: load it without lora" if (folder / "config.json").is_file() else ""
        raise ModelLoadError(
            f"no LoRA adapter in {str(folder)!r}: {CONFIG_FILE} is missing{hint or '; give its folder'}"
        )
    kind = adapter_config(folder).get("peft_type")
    if kind != "LORA":
        raise ModelLoadError(f"adapter {str(folder)!r} is of type {kind!r}; only LORA is supported")
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelLoadError(f"adapter {str(folder)!r} lacks {WEIGHTS_FILE}; save it again as safetensors")
    return folder


def adapter_config(folder: Path) -> dict[str, object]:
    """``adapter_config.json`` as it stands.

    Raises:
        ModelLoadError: not JSON.
    """
    file = folder / CONFIG_FILE
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{file} is not valid JSON ({error}); save the adapter again") from error


def read_record(folder: Path) -> AdapterRecord | None:
    """What this framework wrote beside the adapter; None for an adapter of another program.

    Raises:
        ModelLoadError: the file is damaged.
    """
    file = folder / RECORD_FILE
    if not file.is_file():
        return None
    try:
        return AdapterRecord(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelLoadError(f"{file} is damaged ({error}); save the adapter again, or delete that file") from error


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE]))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelLoadError(
            f"no LoRA adapter {name!r}: no such folder, and the hub did not give it ({reason})"
        ) from error


# ------------------------------------------------------------------------------------------------------ layers, weights


def head_name(model: PreTrainedModel) -> str | None:
    """The name of the vocabulary head among the model's modules."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def sample_weights(model: nn.Module) -> dict[str, float]:
    """The middle value of some of the model's weights, by name; quantised ones are left out."""
    parameters = dict(model.named_parameters())
    names = sorted(parameters)
    chosen = {name: parameters[name] for name in names[:: max(1, len(names) // _SAMPLED_WEIGHTS)]}
    with _whole(chosen.values()):
        return {
            name: float(weight.detach().reshape(-1)[weight.numel() // 2])
            for name, weight in chosen.items()
            if weight.is_floating_point() and weight.numel()
        }


def _whole(weights: Iterable[nn.Parameter]) -> AbstractContextManager:
    """Inside, weights that ZeRO-3 has spread over processes are whole on each of them."""
    spread = [weight for weight in weights if hasattr(weight, "ds_id")]
    if not spread:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(spread)


def _differing(model: nn.Module, recorded: Mapping[str, float]) -> list[str]:
    """The weights that are not those recorded; half precision rounds by less than half a percent."""
    own = sample_weights(model)
    return [
        name
        for name, value in recorded.items()
        if name in own and abs(own[name] - value) > 0.01 * max(abs(value), abs(own[name])) + 1e-6
    ]


def _check_targets(model: PreTrainedModel, targets: Iterable[str], head: str | None) -> None:
    layers = [name for name, module in model.named_modules() if widths(module) is not None and name != head]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            known = sorted({name.rpartition(".")[2] for name in layers})
            near = did_you_mean(target, known)
            raise OptionError(
                f"lora.targets: {target!r} matches no layer of {type(model).__name__}.{near} Its layers are "
                f"{', '.join(known)}; or write {ALL_LINEAR!r}"
            )


def _check_layers(model: PreTrainedModel, folder: Path, advice: str) -> None:
    """Every pair of matrices belongs to a layer of its widths: (R, I) and (O, R) to one from I to O."""
    from safetensors import safe_open

    layers = dict(model.named_modules())
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            name, _, part = key.removeprefix(_PREFIX).rpartition(".lora_")
            if part not in ("A.weight", "B.weight"):
                continue
            layer = layers.get(name)
            if layer is None:
                raise ModelLoadError(f"adapter {folder} has weights for {name!r}, which this model lacks; {advice}")
            shape = file.get_slice(key).get_shape()
            own = widths(layer) or (None, None)
            wide, here = (shape[1], own[0]) if part == "A.weight" else (shape[0], own[1])
            if here is not None and wide != here:
                raise ModelLoadError(f"adapter {folder}: {name!r} is {wide} wide there and {here} here; {advice}")


def widths(layer: nn.Module) -> tuple[int, int] | None:
    """Width of a linear layer's input and output, None for any other module. GPT-2 calls them otherwise."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    return (layer.nx, layer.nf) if hasattr(layer, "nx") else None


def _comparable(value: object) -> object:
    return sorted(value) if isinstance(value, (list, set, tuple)) else value


def _around(denoiser: Denoiser, model: nn.Module, record: AdapterRecord | None) -> Denoiser:
    around = copy.copy(denoiser)
    around.model, around.lora = model, record
    return around


def _peft():
    if importlib.util.find_spec("peft") is None:
        raise OptionError("LoRA needs the peft library: pip install 'dllm-core[train]'")
    import peft

    return peft
