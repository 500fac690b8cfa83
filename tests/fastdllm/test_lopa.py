"""LoPA against a plain loop over one row, and its special cases."""

from __future__ import annotations

import functools

import pytest
import torch
from dllm_fastdllm import LoPASampler
from dllm_fastdllm.lopa import outlook

import dllm_core as dllm
from dllm_core.conformance.deep import deep_denoiser
from dllm_core.errors import OptionError
from dllm_core.samplers import MDLMSampler

VOCAB, MASK, NEW = 12, 12, 16
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]


@functools.cache
def denoiser(seed: int = 0) -> dllm.Denoiser:
    sharp = deep_denoiser(VOCAB, 64, pad=0, seed=seed)
    with torch.no_grad():
        sharp.model.get_output_embeddings().weight.mul_(8)  # confident enough that thresholds decide something
    return sharp


def guesses(model: dllm.Denoiser, ids: list[int], start: int, stop: int) -> dict[int, tuple[float, int]]:
    """(confidence, token) of the masks of the block."""
    with torch.no_grad():
        logits = model.logits(torch.tensor([ids]))[0]
    whole = logits.logsumexp(1)
    logits[:, MASK] = -torch.inf
    return {
        at: ((logits[at].max() - whole[at]).exp().item(), logits[at].argmax().item())
        for at in range(start, stop)
        if ids[at] == MASK
    }


def score(found: dict[int, tuple[float, int]], own: float, weight: float, share: float) -> float:
    sure = sorted(confidence for confidence, _ in found.values())
    weakest = sure[: max(1, int(len(sure) * share))]
    return weight * own + (1 - weight) * (sum(weakest) / len(weakest) if weakest else 1.0)


def loop_lopa(
    model: dllm.Denoiser, prompt: list[int], block: int, threshold: float, branches: int, weight: float, share: float
) -> list[list[int]]:
    """Every canvas of one row, by the paper's description over Python lists."""
    ids, canvases = prompt + [MASK] * NEW, []
    for start in range(len(prompt), len(ids), block):
        stop = min(start + block, len(ids))
        found = guesses(model, ids, start, stop)
        while True:
            order = sorted(found, key=lambda at: (-found[at][0], at))
            taken = [at for at in order if found[at][0] >= threshold] or order[:1]
            for at in taken:
                ids[at] = found[at][1]
            canvases.append(list(ids))
            left = [at for at in order if at not in taken]
            if not left:
                break
            tried = [(list(ids), 1.0)]
            for at in left[:branches]:
                confidence, token = found[at]
                tried.append(([*ids[:at], token, *ids[at + 1 :]], confidence))
            seen = [guesses(model, canvas, start, stop) for canvas, _ in tried]
            scores = [score(each, own, weight, share) for each, (_, own) in zip(seen, tried, strict=True)]
            best = max(range(len(tried)), key=lambda number: (scores[number], -number))
            ids, found = tried[best][0], seen[best]
    return canvases


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("block", "threshold", "branches", "weight", "share"),
    [(8, 0.9, 2, 0.5, 0.5), (16, 0.5, 4, 0.1, 0.3), (5, 0.3, 20, 0.0, 1.0), (16, 0.7, 3, 0.0, 0.5)],
)
def test_every_canvas_is_that_of_the_loop(seed, block, threshold, branches, weight, share):
    model = denoiser(seed)
    options = {"block_size": block, "threshold": threshold, "branches": branches}
    options |= {"creation_weight": weight, "weakest_share": share}
    sampler = LoPASampler(model, max_new_tokens=NEW, **options)
    for prompt in PROMPTS:
        got = [step.input_ids[0, : len(prompt) + NEW].tolist() for step in sampler.stream([prompt])]
        assert got == loop_lopa(model, prompt, block, threshold, branches, weight, share)


def test_looking_ahead_saves_passes_and_branches_are_followed():
    plain = MDLMSampler(denoiser(), max_new_tokens=NEW, block_size=16, commit="threshold", threshold=0.9)
    ahead = LoPASampler(denoiser(), max_new_tokens=NEW, block_size=16, branches=4, creation_weight=0.0)
    assert ahead.sample(PROMPTS).stats.forward_passes < plain.sample(PROMPTS).stats.forward_passes


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"guidance_scale": 1.0}, {"confidence": "entropy"}])
def test_without_branches_it_is_the_masked_sampler_with_its_rule(options):
    shared = {"max_new_tokens": NEW, "block_size": 8, "threshold": 0.3} | options
    plain = MDLMSampler(denoiser(), commit="threshold", **shared).sample(PROMPTS)
    ahead = LoPASampler(denoiser(), branches=0, **shared).sample(PROMPTS)
    assert torch.equal(plain.sequences, ahead.sequences)
    assert plain.stats.positions_processed == ahead.stats.positions_processed


@pytest.mark.parametrize("branches", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 1.0},
        {"temperature": 1.0},
        {"confidence": "entropy", "commit": "fastdllm/factor"},
        {"suppress_confidence_tokens": (3, 5), "creation_weight": 1.0},
    ],
)
def test_a_ragged_batch_gives_each_row_what_it_gets_alone(options, branches):
    sampler = LoPASampler(denoiser(), max_new_tokens=NEW, block_size=8, branches=branches, **options)
    together = sampler.sample(PROMPTS)
    assert not (together.sequences == MASK).any()
    for row, prompt in enumerate(PROMPTS):
        alone = sampler.sample([prompt])
        assert together.sequences[row, : together.lengths[row]].tolist() == alone.sequences[0].tolist()


@pytest.mark.parametrize("branches", [0, 1, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.0])
def test_a_block_takes_no_more_steps_than_it_has_masks(branches, threshold):
    for block in (1, 5, None):
        sampler = LoPASampler(denoiser(), max_new_tokens=NEW, block_size=block, branches=branches, threshold=threshold)
        steps = list(sampler.stream(PROMPTS))
        assert len(steps) <= NEW
        assert not (steps[-1].input_ids == MASK).any()


def test_every_canvas_is_counted():
    out = LoPASampler(denoiser(), max_new_tokens=4, block_size=4, branches=2, threshold=1.0).sample([[1, 2]])
    assert out.stats.positions_processed == 6 + (out.stats.forward_passes - 1) * 3 * 6


def test_what_is_to_come_is_the_mean_of_the_weakest():
    confidence = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7], [0.9, 0.1, 0.5, 0.3, 0.7], [0.2] * 5])
    masked = torch.tensor([[True] * 5, [True, False, True, True, False], [False] * 5])
    got = outlook(confidence, masked, 0.5)  # the weakest 2 of 5, 1 of 3, none
    torch.testing.assert_close(got, torch.tensor([0.2, 0.3, 1.0]))


def test_where_it_is_not_defined_it_says_so():
    with pytest.raises(OptionError, match="lopa writes more than commit='quota' plans; use commit='threshold'"):
        LoPASampler(denoiser(), commit="quota")
    with pytest.raises(OptionError, match="commit='credit' needs a history of the block, and LoPASampler has none"):
        LoPASampler(denoiser(), commit="credit")
    with pytest.raises(OptionError, match="weakest_share must be above 0"):
        LoPASampler(denoiser(), weakest_share=0.0)
