"""Every installed family refuses a checkpoint that cannot work, and needs no code of a checkpoint's own."""

from __future__ import annotations

import json

import pytest
import torch

import dllm_core as dllm
from dllm_core.conformance.adapter_suite import random_ids
from dllm_core.errors import ModelLoadError
from tests.families import adapter_suites, name_of

families = pytest.mark.parametrize("suite", list(adapter_suites()), ids=name_of)


@families
def test_a_mask_token_outside_the_embedding(suite):
    tests = suite()
    rows = tests.model().get_input_embeddings().weight.shape[0]
    said = rf"mask={rows} lies outside the embedding of {rows} rows; give special_ids"
    with pytest.raises(ModelLoadError, match=said):
        dllm.Denoiser(tests.model(), tests.adapter(), tests.prepared_tokenizer(), special_ids={"mask": rows})


@families
def test_code_that_a_checkpoint_asks_for_is_neither_run_nor_needed(suite):
    tests = suite()
    denoiser = tests.denoiser()
    ids = random_ids(denoiser, 2, 8)
    with tests.saved(denoiser.model) as folder:
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "own_code.Config", "AutoModel": "own_code.Model"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "own_code.py").write_text("raise SystemExit('run')\n")
        loaded = tests.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(ids), denoiser.logits(ids))
