"""What a model family declares: which checkpoints it serves, how they load, and which conventions they follow."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dllm_core.errors import ModelLoadError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "vocab.txt")


def _attribute(target: str) -> object:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


class ModelAdapter:
    """One model family. A subclass sets the class attributes; few families need to override a method.

    Conventions are declared, never sniffed: samplers, objectives and evaluation read them through `Denoiser`.

    Attributes:
        model_types: the ``model_type`` values of ``config.json`` that this family serves.
        config_class, model_class: import strings ``"package.module:Class"`` of the Hugging Face classes.
        logits_are_shifted: row i of the model's logits predicts token i + 1 (autoregressive heritage), not token i;
            a checkpoint whose config.json has a field of this name decides for itself.
        supports_kv_cache: the model takes ``past_key_values`` and keeps keys after their rotary embedding.
        supports_block_causal: the model takes a 4-D attention pattern.
        mask_token: text of the mask token in the family's tokenizer; None: the tokenizer's own ``mask_token``.
        eot_tokens: texts of the tokens that end a turn, besides the end of sequence.
        eot_texts: texts that end a turn where the tokenizer spells them with several tokens: completions are cut there.
        chat_template: replaces the checkpoint's own template where that one is missing or wrong.
        lora_targets: module names for LoRA, or ``"all-linear"``.
        extra_heads: names of modules that the logits do not use and an objective of the family's own trains. LoRA
            leaves them as they are: trained and saved whole. A checkpoint may lack some of them.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    config_class: ClassVar[str]
    model_class: ClassVar[str]
    logits_are_shifted: ClassVar[bool] = False
    supports_kv_cache: ClassVar[bool] = False
    supports_block_causal: ClassVar[bool] = False
    mask_token: ClassVar[str | None] = None
    eot_tokens: ClassVar[tuple[str, ...]] = ()
    eot_texts: ClassVar[tuple[str, ...]] = ()
    chat_template: ClassVar[str | None] = None
    lora_targets: ClassVar[tuple[str, ...] | str] = "all-linear"
    extra_heads: ClassVar[tuple[str, ...]] = ()

    def for_checkpoint(self, config: Mapping[str, object]) -> ModelAdapter:
        """The adapter of a checkpoint whose ``config.json`` holds these fields: this one.

        A family whose model type covers several architectures returns another where the fields say so.
        """
        return self

    def load_config(self, path: str, *, revision: str | None = None) -> PreTrainedConfig:
        """Read ``config.json`` of a folder or hub id into the family's own configuration class."""
        return _attribute(self.config_class).from_pretrained(path, revision=revision)

    def build_model(self, config: PreTrainedConfig) -> PreTrainedModel:
        """A model with fresh random weights, for training from scratch."""
        return _attribute(self.model_class)(config)

    def load_model(
        self,
        path: str,
        config: PreTrainedConfig,
        *,
        dtype: torch.dtype | str,
        attn_implementation: str | None = None,
        revision: str | None = None,
        quantization: Mapping[str, object] | None = None,
    ) -> PreTrainedModel:
        """Load weights from safetensors.

        Args:
            dtype: a torch dtype or ``"auto"`` (the checkpoint's own).
            quantization: what ``from_pretrained`` is to be told besides, to quantise the weights as they load; never
                given to a family whose method does not name it.

        Raises:
            ModelLoadError: the checkpoint lacks weights of the model, which would otherwise start at random.
        """
        model, found = _attribute(self.model_class).from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision=revision,
            use_safetensors=True,
            output_loading_info=True,
            **(quantization or {}),
        )
        if missing := sorted(found["missing_keys"]):
            raise ModelLoadError(
                f"{path} lacks {len(missing)} weights of {type(model).__name__} ({missing[0]} ...); the checkpoint is "
                "not whole, or is of another architecture than its config.json says"
            )
        return model

    def load_tokenizer(self, path: str, *, revision: str | None = None) -> PreTrainedTokenizerBase | None:
        """The checkpoint's tokenizer, prepared for the family; None where a local folder holds none."""
        from transformers import AutoTokenizer

        if not self.has_tokenizer(path):
            return None
        return self.prepare_tokenizer(AutoTokenizer.from_pretrained(path, revision=revision))

    def has_tokenizer(self, path: str) -> bool:
        """Whether a local folder holds a tokenizer; a hub id is taken to have one."""
        folder = Path(path)
        return not folder.is_dir() or any((folder / name).exists() for name in TOKENIZER_FILES)

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Give the tokenizer the family's mask token and chat template. Adds no id that the vocabulary lacks."""
        if self.mask_token is not None and self.mask_token in tokenizer.get_vocab():
            tokenizer.mask_token = self.mask_token
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        return tokenizer

    def context_length(self, config: PreTrainedConfig) -> int | None:
        """The longest sequence, in tokens, that the positions of this checkpoint reach; None where unbounded."""
        return getattr(config, "max_position_embeddings", None)

    def shifts_logits(self, config: PreTrainedConfig) -> bool:
        """Whether the logits of this checkpoint are shifted: as its configuration says, else as the family declares."""
        return getattr(config, "logits_are_shifted", self.logits_are_shifted)

    def logits_end_at_head(self, config: PreTrainedConfig) -> bool:
        """Whether the model returns what its vocabulary head gives, unchanged: no soft cap and no scale after it.

        The memory-lean loss (`Denoiser.nll`) takes the head's logits for those of the model. A family that changes them
        under another name than these fields overrides this.
        """
        switches = ("final_logit_softcapping", "scale_logits")
        factors = ("logit_scale", "logits_scaling")
        return not any(getattr(config, name, None) for name in switches) and all(
            getattr(config, name, None) in (None, 1) for name in factors
        )

    def check_config(self, config: PreTrainedConfig) -> None:
        """Raise where this adapter was named by hand for a checkpoint of another family.

        Raises:
            ModelLoadError: the checkpoint's ``model_type`` is not among ``model_types``.
        """
        if config.model_type not in self.model_types:
            raise ModelLoadError(
                f"{type(self).__name__} serves model types {', '.join(self.model_types)}, this checkpoint says "
                f"{config.model_type!r}; leave out adapter= to choose the family from config.json"
            )
