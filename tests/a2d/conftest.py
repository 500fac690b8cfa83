"""Small causal checkpoints with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from dllm_a2d.tiny import architecture, build_tokenizer, causal_config
from transformers import PreTrainedModel

MakeCausal = Callable[..., tuple[Path, PreTrainedModel]]


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> MakeCausal:
    """``causal("qwen3")`` saves a causal model with its tokenizer -> (folder, model).

    ``full=True``: its vocabulary has no room for a mask token.
    """
    made: dict[tuple, tuple[Path, PreTrainedModel]] = {}

    def make(source_type: str, *, full: bool = False, tied: bool | None = None) -> tuple[Path, PreTrainedModel]:
        key = (source_type, full, tied)
        if key not in made:
            tokenizer = build_tokenizer(source_type)
            config = causal_config(source_type, *([len(tokenizer)] if full else []))
            if tied is not None:
                config.tie_word_embeddings = tied
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = getattr(transformers, architecture(source_type).model)(config).eval()
                for weight in model.parameters():
                    weight.data.add_(0.1 * torch.randn_like(weight))
            folder = tmp_path_factory.mktemp(source_type)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[key] = folder, model
        return made[key]

    return make
