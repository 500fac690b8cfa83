"""Every installed family from random weights to a trained model that is saved, loaded, writes and is scored.

How well it learns is for the tests of each plugin; here it is that nothing on the way needs anything that only one
family has.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import dllm_core as dllm
from dllm_core import registry
from dllm_core.conformance.adapter_suite import random_ids
from dllm_core.evaluation import loglikelihood
from dllm_core.training.recipes import parse_recipe
from dllm_core.training.run import train
from tests.families import adapter_suites, name_of

SUITES = list(adapter_suites())
BLOCK = 4


def write_examples(file: Path, denoiser: dllm.Denoiser) -> None:
    """Rows of tokens in whole blocks, their first block given."""
    with file.open("w") as lines:
        for seed in range(16):
            ids = random_ids(denoiser, 3 * BLOCK + BLOCK * (seed % 2), seed=seed).tolist()
            lines.write(json.dumps({"input_ids": ids, "labels": [-100] * BLOCK + ids[BLOCK:]}) + "\n")


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
@pytest.mark.parametrize("suite", SUITES, ids=name_of)
def test_train_save_load_generate_and_score(suite, objective, tmp_path):
    tests = suite()
    denoiser = tests.denoiser()
    needs = registry.load("objective", objective).needs
    if not all(getattr(denoiser.adapter, capability) for capability in needs):
        pytest.skip(f"the family does not declare {needs}; tests/test_matrix.py holds that this is refused")
    write_examples(tmp_path / "rows.jsonl", denoiser)
    with tests.saved(denoiser.model) as folder:
        recipe = {
            "model": {"checkpoint": str(folder)},
            "data": {"dataset": str(tmp_path / "rows.jsonl")},
            "objective": {"name": objective, **({"block_size": BLOCK} if objective == "bd3lm" else {})},
            "training": {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.01, "use_cpu": True},
        }
        train(parse_recipe(recipe), tmp_path / "trained")
    trained = dllm.load(tmp_path / "trained", device="cpu")
    assert type(trained.adapter) is type(denoiser.adapter)
    prompt, answer = random_ids(trained, BLOCK, seed=3).tolist(), random_ids(trained, 2 * BLOCK, seed=4).tolist()
    scored = [loglikelihood(model, prompt, answer, mc_num=4, seed=0) for model in (denoiser, trained)]
    assert torch.tensor(scored).isfinite().all()
    assert scored[0] != scored[1]
    out = dllm.sampler(objective, trained, max_new_tokens=2 * BLOCK, steps=4, block_size=BLOCK).sample([prompt])
    assert out.sequences[0, :BLOCK].tolist() == prompt
    assert not (out.sequences == trained.mask_token_id).any()
