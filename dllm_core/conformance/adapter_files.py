"""Checks of what an adapter declares, and of the way from a folder to a model and back."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from dllm_core.conformance.adapter_suite import AdapterSuite, random_ids
from dllm_core.conformance.expect import expect, expect_close, expect_equal, expect_refused
from dllm_core.errors import ComponentLoadError, ModelLoadError
from dllm_core.models.adapter import ModelAdapter
from dllm_core.plugins import import_string

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FLAGS = ("logits_are_shifted", "supports_kv_cache", "supports_block_causal")
TEXTS = ("config_class", "model_class")
LONGEST = 4096  # tokens that a check feeds at most
# Written anew at every save, or about the process rather than the model.
NOT_KEPT = ("architectures", "dtype", "model_type", "transformers_version")


class FileChecks(AdapterSuite):
    """Declarations, configurations and weights."""

    def test_declarations_are_well_formed(self) -> None:
        """The class derives from ModelAdapter, is made without arguments, and its attributes have the types declared.

        Why: ``eot_tokens = "<eot>"`` is a tuple of five letters to everybody who loops over it.

        Mend: compare with `dllm_core.models.ModelAdapter`; a tuple of one entry has a comma.
        """
        found = self.load_component()
        expect(isinstance(found, type) and issubclass(found, ModelAdapter), f"{found!r} is no subclass of ModelAdapter")
        adapter = self.adapter()
        for name in ("model_types", "eot_tokens", "eot_texts"):
            value = getattr(adapter, name)
            good = isinstance(value, tuple) and all(isinstance(entry, str) and entry for entry in value)
            expect(good, f"{name} is {value!r}; make it a tuple of texts")
        for name in FLAGS:
            expect(isinstance(getattr(adapter, name), bool), f"{name} is {getattr(adapter, name)!r}; say True or False")
        for name in TEXTS:
            _import(name, getattr(adapter, name, None))

    def test_only_its_own_model_types_are_taken(self) -> None:
        """The small configuration is of a declared model type; a checkpoint of another family is refused in words.

        Why: weights of a similar architecture may load without an error and generate fluent nonsense.

        Mend: list the family's ``model_type`` values in class and spec; leave `check_config` to raise ModelLoadError.
        """
        adapter, config = self.adapter(), self.tiny_config()
        told = f"the configuration says {config.model_type!r}, the adapter serves {adapter.model_types}; list it"
        expect(config.model_type in adapter.model_types, told)
        expect_equal(sorted(self._spec().model_types), sorted(adapter.model_types), "model_types of spec and class")
        adapter.check_config(config)
        config.model_type = "some-other-family"
        check = functools.partial(adapter.check_config, config)
        expect_refused(check, ModelLoadError, "some-other-family", "a configuration of another family")

    def test_config_survives_saving(self) -> None:
        """A configuration that is saved and read again says the same in every field.

        Why: a field that is not written, or whose default differs from the published one, changes the model silently.

        Mend: declare every field in the configuration class; watch defaults for fields that ``config.json`` leaves out.
        """
        adapter, config = self.adapter(), self.tiny_config()
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            read = adapter.load_config(folder)
            written = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        expect_equal(written.get("model_type"), config.model_type, "model_type in config.json")
        before, after = _fields(config), _fields(read)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        told = ", ".join(f"{name}: {before.get(name)!r} -> {after.get(name)!r}" for name in changed)
        expect(not changed, f"saving and reading changes {told}; write and read every field")

    def test_saving_and_loading_keep_the_logits(self) -> None:
        """``save_pretrained`` and ``dllm.load`` of the folder give the same logits and the same special tokens.

        Why: tied weights, renamed modules and buffers that are drawn anew are lost on the way without a word.

        Mend: look at ``_tied_weights_keys``, at persistent buffers, and at what `load_model` passes on.
        """
        denoiser = self.denoiser()
        ids = random_ids(denoiser, 2, 9)
        with self.saved(denoiser.model) as folder:
            safe = any(folder.glob("*.safetensors"))
            expect(safe, "save_pretrained writes no safetensors; a checkpoint must hold them")
            loaded = self.load(folder)
        expect(not loaded.model.training, "a loaded model is in training mode; leave it as `dllm.load` sets it")
        expect_close(
            loaded.logits(ids).detach(),
            denoiser.logits(ids).detach(),
            "logits after and before saving",
            tolerance=self.tolerance,
        )
        names = ("mask_token_id", "eos_token_id", "pad_token_id", "bos_token_id", "eot_token_ids", "context_length")
        for name in names:
            expect_equal(getattr(loaded, name), getattr(denoiser, name), f"{name} after saving")

    def test_missing_weights_are_refused(self) -> None:
        """A checkpoint that lacks a weight raises ModelLoadError instead of starting that weight at random.

        Why: Hugging Face only warns; the model then answers, badly, and nobody reads the warning.

        Mend: leave loading to `ModelAdapter.load_model`, or check ``missing_keys`` as it does.
        """
        with self.saved(self.model()) as folder:
            file = folder / "model.safetensors"
            weights = load_file(file)
            largest = max(weights, key=lambda name: weights[name].numel())
            del weights[largest]
            save_file(weights, file, metadata={"format": "pt"})
            expect_refused(lambda: self.load(folder), ModelLoadError, "lacks", f"a checkpoint without {largest}")

    def test_weights_load_in_the_type_asked_for(self) -> None:
        """``dtype`` decides the type of the floating-point weights; on the CPU the default is float32.

        Why: an 8B model that is loaded in float32 first does not fit where its bfloat16 weights would.

        Mend: pass ``dtype`` on in `load_model`.
        """
        with self.saved(self.model().to(torch.bfloat16)) as folder:
            for dtype, want in (("bfloat16", torch.bfloat16), ("auto", torch.float32)):
                loaded = self.load(folder, dtype=dtype).model
                other = [name for name, weight in loaded.named_parameters() if weight.dtype != want]
                expect(not other, f"loaded with dtype={dtype!r}, {len(other)} weights are not {want}: {other[:3]}")

    def test_context_length_is_stated(self) -> None:
        """The context is a number of tokens that the model's positions really reach, or None where they never end.

        Why: past its positions a model fails with an index error, or with rotary positions quietly writes nonsense.

        Mend: return the field of the configuration that holds it from `context_length`; None only where there is none.
        """
        model, config = self.model(), self.tiny_config()
        stated = self.adapter().context_length(config)
        if stated is None:
            return
        expect(type(stated) is int and stated > 0, f"context_length is {stated!r}; give a number of tokens, or None")
        denoiser = self.denoiser(model)
        ids = random_ids(denoiser, 1, min(stated, LONGEST))
        try:
            logits = denoiser.logits(ids, at=torch.tensor([[ids.shape[1] - 1]])).detach()
        except (IndexError, RuntimeError, ValueError) as error:
            told = f"a text of context_length={stated} tokens does not run: {error}"
            raise AssertionError(f"{told}; state what the positions reach") from error
        expect(logits.isfinite().all(), f"logits at the last of context_length={stated} positions are not finite")


def _import(name: str, target: object) -> None:
    expect(isinstance(target, str) and ":" in target, f"{name} is {target!r}; give 'package.module:Class'")
    try:
        import_string(target)
    except ComponentLoadError as error:
        raise AssertionError(f"{name}: {error}; correct the import string") from error


def _fields(config: PreTrainedConfig) -> dict[str, object]:
    """What the model reads of it; not `to_dict`, which may leave out the very field that is lost."""
    return {name: value for name, value in vars(config).items() if name not in NOT_KEPT and not name.startswith("_")}
