"""Monte-Carlo likelihoods and greedy checks of LLaDA against published figures, with the published draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dllm_core as dllm
from dllm_core.evaluation import is_greedy, loglikelihood, masked_loglikelihood

GOLDENS = Path(__file__).parent / "goldens"
CASES = [
    pytest.param(file.parent, case, id=f"{file.parent.name}-{case['id']}")
    for file in sorted(GOLDENS.glob("*/cases.json"))
    for case in json.loads(file.read_text())["cases"]
    if case["kind"] == "mc_loglikelihood"
]


def test_there_are_cases():
    assert len(CASES) == 4


@pytest.fixture(scope="module")
def loaded():
    """The case's denoiser and tensors, loaded once a folder."""
    known = {}

    def load(folder: Path) -> tuple[dllm.Denoiser, dict[str, torch.Tensor]]:
        if folder not in known:
            special_ids = json.loads((folder / "cases.json").read_text())["special_ids"]
            denoiser = dllm.load(folder, device="cpu", dtype="float32", special_ids=special_ids)
            known[folder] = denoiser, load_file(folder / "cases.safetensors")
        return known[folder]

    return load


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_published_draws_give_the_published_likelihood(folder, case, loaded):
    denoiser, store = loaded(folder)
    given = {name: store[f"{case['id']}.in.{name}"] for name in case["inputs"]}
    noise = list(zip(given["noisy_batches"], given["p_mask"], strict=True))
    assert len(noise) * len(noise[0][0]) == case["params"]["mc_num"]
    with torch.no_grad():
        each = [masked_loglikelihood(denoiser, given["prefix"], given["target"], *batch) for batch in noise]
    got = torch.stack(each).mean()
    torch.testing.assert_close(got, store[f"{case['id']}.out.loglikelihood"], **case["tolerance"])


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_greedy_continuations_are_known_as_such(folder, case, loaded):
    denoiser, store = loaded(folder)
    prefix = store[f"{case['id']}.in.prefix"]
    for name in ("target", "greedy_target"):
        target, want = store[f"{case['id']}.in.{name}"], bool(store[f"{case['id']}.out.is_greedy_{name}"])
        if want and lead_of_the_surest(denoiser, prefix, len(target)) < 1e-5:
            assert not len(prefix)  # nothing but masks: which of them comes first is a matter of rounding
            continue
        assert is_greedy(denoiser, prefix, target) is want


@torch.no_grad()
def lead_of_the_surest(denoiser: dllm.Denoiser, prefix: torch.Tensor, length: int) -> float:
    """By how much the first position to be written is surer than the second."""
    canvas = torch.cat([prefix, prefix.new_full((length,), denoiser.mask_token_id)])[None]
    sure = denoiser.logits(canvas)[0, len(prefix) :].softmax(-1).amax(-1).sort(descending=True).values
    return float(sure[0] - sure[1]) if length > 1 else 1.0


@pytest.mark.parametrize(("folder", "case"), CASES[:1])
def test_own_draws_come_near(folder, case, loaded):
    """Estimates from 64 copies spread by about 1.8, their mean over four seeds by 0.9."""
    denoiser, store = loaded(folder)
    prefix, target = (store[f"{case['id']}.in.{name}"].tolist() for name in ("prefix", "target"))
    estimates = torch.tensor([loglikelihood(denoiser, prefix, target, mc_num=64, seed=seed) for seed in range(4)])
    assert abs(float(estimates.mean()) - float(store[f"{case['id']}.out.loglikelihood"])) < 4
