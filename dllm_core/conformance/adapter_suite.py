"""What all checks of model adapters share: a small model of the family, token ids, a folder to save in.

Shapes: B rows, L length, V vocabulary.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dllm_core import registry
from dllm_core.conformance.suite import Suite
from dllm_core.hookspecs import ModelAdapterSpec
from dllm_core.models.adapter import ModelAdapter
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.loading import load
from dllm_core.plugins import PluginHost, PluginRecord, use_plugin_host

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

NOISE = 0.1  # standard deviation: enough that every weight matters, also those that start at zero
LENGTHS = (12, 7, 4)  # tokens of the rows of a ragged batch
CHAT = (
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "good day"},
    {"role": "user", "content": "what now"},
)


class AdapterSuite(Suite):
    """Attributes of the test class, and what its checks run on.

    What the adapter declares of itself is believed and checked: a cache, attention patterns, the shift of its logits.

    Attributes:
        tiny_config: method that gives a small configuration of the family; the only one that has to be written.
        tokenizer: method that gives a tokenizer of the family, as its checkpoints have it.
        attends_both_ways: every position sees those before and after it; False: only those before it.
        special_ids: as of `dllm_core.load`, for families without a tokenizer here; else the last id is the mask.
        checkpoint: name or folder of a trained checkpoint, to see that the declared shift is that of its weights.
        texts: short texts such as that checkpoint was trained on.
        tolerance: by how much equal logits may differ, relative and absolute.
    """

    kind = "adapter"
    attends_both_ways: ClassVar[bool] = True
    special_ids: ClassVar[Mapping[str, int]] = {}
    checkpoint: ClassVar[str] = ""
    texts: ClassVar[Sequence[str]] = ()
    tolerance: ClassVar[float] = 1e-4

    def tiny_config(self) -> PreTrainedConfig:
        """A configuration of the family with few and narrow layers, and room for all ids of `tokenizer`."""
        raise AssertionError(
            f"{type(self).__name__} gives no tiny_config(); return a small configuration of the family, two layers of "
            "width 32 and a context of 64 for instance"
        )

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """A tokenizer of the family, as its checkpoints have it; None: prompts are token ids."""
        return None

    def adapter(self) -> ModelAdapter:
        """The adapter under test."""
        return self.load_component()()

    @property
    def supports_kv_cache(self) -> bool:
        return self.adapter().supports_kv_cache

    @property
    def supports_block_causal(self) -> bool:
        return self.adapter().supports_block_causal

    @property
    def supports_gradient_checkpointing(self) -> bool:
        return self.model().supports_gradient_checkpointing

    @property
    def has_tokenizer(self) -> bool:
        return self.tokenizer() is not None

    @property
    def has_chat_template(self) -> bool:
        return self.has_tokenizer and self.prepared_tokenizer().chat_template is not None

    def prepared_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer with the family's mask token and chat template, None where there is none."""
        own = copy.deepcopy(self.tokenizer())  # which may be a shared one, and preparing changes it
        return None if own is None else self.adapter().prepare_tokenizer(own)

    def given_ids(self) -> dict[str, int] | None:
        """Special ids for `Denoiser` and `load`; None where the tokenizer knows them."""
        if self.special_ids or self.has_tokenizer:
            return dict(self.special_ids) or None
        return {"mask": self.model().get_input_embeddings().weight.shape[0] - 1}

    def model(self) -> PreTrainedModel:
        """A model of `tiny_config` in evaluation mode; its weights are the same at every call, and none is zero."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.adapter().build_model(copy.deepcopy(self.tiny_config()))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(NOISE * torch.randn(parameter.shape, dtype=parameter.dtype))
        return model.eval()

    def denoiser(self, model: PreTrainedModel | None = None, *, logits_are_shifted: bool | None = None) -> Denoiser:
        """That model with the family's conventions; ``logits_are_shifted=False`` leaves its rows where they are."""
        return Denoiser(
            self.model() if model is None else model,
            self.adapter(),
            self.prepared_tokenizer(),
            special_ids=self.given_ids(),
            logits_are_shifted=logits_are_shifted,
        )

    def registered(self) -> AbstractContextManager:
        """While it lasts the adapter is the only component that is installed, so `load` finds it by its model type."""
        record = PluginRecord(name="tested", distribution="tested", version="0", target="", specs=(self._spec(),))
        host = PluginHost()
        host.records.append(record)
        return use_plugin_host(host)

    def _spec(self) -> ModelAdapterSpec:
        if ":" not in self.component:
            return registry.find(self.kind, self.component).spec
        types = self.adapter().model_types
        return ModelAdapterSpec(name="tested", summary="-", target=self.component, source="-", model_types=types)

    @contextmanager
    def saved(self, model: PreTrainedModel) -> Iterator[Path]:
        """A folder with a model, and its tokenizer if there is one, as ``save_pretrained`` writes them."""
        tokenizer = self.prepared_tokenizer()
        with tempfile.TemporaryDirectory() as folder, _quiet_hugging_face():
            model.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            yield Path(folder)

    def load(self, folder: Path, **options: object) -> Denoiser:
        """What a user gets from that folder."""
        ids = self.given_ids()  # of the adapter as it is installed, which it is not inside the block
        with self.registered():
            return load(folder, device="cpu", special_ids=ids, **options)


def random_ids(denoiser: Denoiser, *shape: int, seed: int = 0) -> Tensor:
    """Token ids without the special ones. -> int64 of that shape"""
    special = {denoiser.mask_token_id, denoiser.bos_token_id, denoiser.pad_token_id, *denoiser.end_token_ids}
    special |= set(getattr(denoiser.tokenizer, "all_special_ids", ()))
    plain = torch.tensor([token for token in range(denoiser.vocab_size) if token not in special])
    return plain[torch.randint(len(plain), shape, generator=torch.Generator().manual_seed(seed))]


def ragged(denoiser: Denoiser, side: str) -> tuple[Tensor, Tensor]:
    """Rows of `LENGTHS` tokens, some of them masked, padded on one side. -> ids (B, L) int64, mask (B, L) bool"""
    width = max(LENGTHS)
    ids = random_ids(denoiser, len(LENGTHS), width)
    ids[:, ::3] = denoiser.mask_token_id
    columns = torch.arange(width)
    counts = torch.tensor(LENGTHS)[:, None]
    mask = columns < counts if side == "right" else columns >= width - counts
    return ids.masked_fill(~mask, denoiser.pad_token_id), mask


@contextmanager
def _quiet_hugging_face() -> Iterator[None]:
    """No progress bars, and no report of the weights that a check has taken away."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
