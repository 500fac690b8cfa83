"""The suffix window: a completion computes its block, what is in front, some masks behind it, and the last position."""

from __future__ import annotations

import pytest
import torch

from dllm_core.conformance.counting import counted
from dllm_core.conformance.deep import deep_denoiser
from dllm_core.errors import OptionError
from dllm_core.samplers import BD3LMSampler, MDLMSampler

VOCAB, LENGTH = 7, 64
PROMPTS = [[1, 2, 3, 4, 5], [6, 5], [2]]
OPTIONS = {"max_new_tokens": 24, "block_size": 4, "stop_at_eos": False}


def steps(sampler, prompts):
    """What each step writes and how sure it is, row by row."""
    rows = [[] for _ in prompts]
    for step in sampler.stream([list(prompt) for prompt in prompts]):
        for row, ids, sure, written in zip(rows, step.input_ids, step.confidence, step.committed, strict=True):
            row += [(p, int(ids[p]), round(float(sure[p]), 5)) for p in written.nonzero()[:, 0].tolist()]
    return rows


def by_hand(denoiser, prompt, window):
    """Greedy decoding of one row, one token a step, each forward over the tokens that the window leaves, in full."""
    mask, new, size = denoiser.mask_token_id, OPTIONS["max_new_tokens"], OPTIONS["block_size"]
    ids = torch.tensor(prompt + [mask] * new)
    last, steps = len(ids) - 1, []
    for start in range(len(prompt), len(ids), size):
        kept = torch.tensor(sorted({*range(min(start + size + window, last + 1)), last}))
        for _ in range(size):
            logits = denoiser.logits(ids[kept][None], position_ids=kept[None])[0].float()  # row p is position p
            tokens = logits.clone()
            tokens[:, mask] = -torch.inf
            block = [p for p in range(start, start + size) if ids[p] == mask]
            best = tokens[block].argmax(-1, keepdim=True)
            confidence = logits[block].softmax(-1).gather(1, best)[:, 0]
            position = block[int(confidence.argmax())]
            ids[position] = tokens[position].argmax()
            steps.append((position, int(ids[position]), round(float(confidence.max()), 5)))
    return steps


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window", [4, 6, 13])
def test_a_windowed_run_is_the_one_written_out_by_hand(window, shifted):
    denoiser = deep_denoiser(VOCAB, LENGTH, shifted=shifted)
    sampler = MDLMSampler(denoiser, suffix_window=window, **OPTIONS)
    with torch.no_grad():
        want = [by_hand(denoiser, list(prompt), window) for prompt in PROMPTS]
    assert steps(sampler, PROMPTS) == want


def test_the_window_changes_what_the_model_says_and_a_wide_one_does_not():
    denoiser = deep_denoiser(VOCAB, LENGTH)
    plain = steps(MDLMSampler(denoiser, **OPTIONS), PROMPTS)
    assert steps(MDLMSampler(denoiser, suffix_window=4, **OPTIONS), PROMPTS) != plain
    assert steps(MDLMSampler(denoiser, suffix_window=24, **OPTIONS), PROMPTS) == plain


def test_far_masks_are_not_computed():
    denoiser = deep_denoiser(VOCAB, LENGTH)
    with counted(denoiser) as counts:
        stats = MDLMSampler(denoiser, suffix_window=4, **OPTIONS).sample([[1, 2, 3]]).stats
    # Four steps a block; block k shows 3 + 4 (k + 1) + 4 positions and the last one, as long as there are so many.
    shown = [4 * min(3 + 4 * (k + 1) + 4 + 1, 27) for k in range(6)]
    assert stats.positions_processed == counts.positions == sum(shown)


def test_infilling_sees_the_whole_canvas():
    denoiser = deep_denoiser(VOCAB, LENGTH)
    mask = denoiser.mask_token_id
    canvases = [[1, mask, mask, 4, 5, 6, 1, 2, 3, mask, 5, 6, 2, 2, 3, 1, 4]]
    windowed, plain = (
        MDLMSampler(denoiser, block_size=4, suffix_window=window).infill(canvases).sequences for window in (4, None)
    )
    assert torch.equal(windowed, plain)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"suffix_window": 3, "block_size": 4}, "suffix_window=3 is smaller than block_size=4"),
        ({"suffix_window": 0}, "suffix_window"),
    ],
)
def test_a_window_smaller_than_the_block_is_refused(options, words):
    with pytest.raises(OptionError, match=words):
        MDLMSampler(deep_denoiser(VOCAB, LENGTH), **options)


def test_blocks_that_look_back_have_no_window():
    with pytest.raises(OptionError, match="leave suffix_window out"):
        BD3LMSampler(deep_denoiser(VOCAB, LENGTH), block_size=4, suffix_window=8)
