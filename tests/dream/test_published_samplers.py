"""Dream's algorithms against published runs: every canvas of every run, or why it differs, step by step.

Shapes: S steps, L length, M open positions, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from dllm_core.samplers import Proposal
from dllm_core.samplers.proposals import Draws, guided, propose
from dllm_core.samplers.quota import quota_counts
from tests.dream.published import SCHEDULES, cases_of, denoiser, our_rows, published_rows, sampler_of

# A nucleus of one token makes a position certain: margin 1, probability 1, entropy 0. Where several are, the published
# code takes them in whatever order torch.topk has them; ours goes from left to right.
TIED = {
    *(f"dream_{number:02d}" for number in (1, 6, 10, 13, 16, 18, 20, 23)),
    "fastdllm_dream_none_02",
}
# A text that begins with a mask, in a batch with longer ones: the published code pads on the left and scores the first
# token from the padding. Ours scores it as it does alone.
PADDING_SCORES = {f"dream_infill_{number:02d}" for number in (0, 1, 6, 8)}
# Without a cache the published threshold never writes more than the schedule has come to; ours (Fast-dLLM, algorithm 1)
# writes all that is sure.
CAPPED = {f"fastdllm_dream_none_{number:02d}" for number in (6, 10, 11)}

ALL = cases_of("sampler")
EXACT = [case for case in ALL if case.id not in TIED | PADDING_SCORES | CAPPED]


def picked(names: set[str]) -> list:
    return [case for case in ALL if case.id in names]


def test_no_case_is_left_out():
    assert (len(ALL), len(EXACT)) == (58, 42)
    assert [len(picked(names)) for names in (TIED, PADDING_SCORES, CAPPED)] == [9, 4, 3]


@pytest.mark.parametrize("case", EXACT)
def test_every_canvas_is_the_published_one(case):
    for got, want in zip(our_rows(sampler_of(case), case), published_rows(case), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("case", [case for case in ALL if case.values[0]["method"] == "sample"])
def test_a_row_alone_passes_through_the_canvases_that_it_has_in_the_batch(case):
    together = our_rows(sampler_of(case), case)
    for row, canvases in enumerate(together):
        (alone,) = our_rows(sampler_of(case), case, [row])
        assert torch.equal(alone, canvases.unique_consecutive(dim=0))


def published_steps(case: dict, row: int) -> Iterator[tuple[torch.Tensor, Proposal, torch.Tensor, torch.Tensor]]:
    """Each step of a published run with what we propose on its canvas.

    Yields:
        the open positions (M,), our proposal (1, M), which of them were written (M,), and what was (M,).
    """
    sampler, canvases = sampler_of(case), published_rows(case)[row]
    model = sampler.denoiser
    for before, after in itertools.pairwise(canvases):
        at = (before == model.mask_token_id).nonzero().T  # (1, M)
        logits = model.logits(before[None], at=at)  # (1, M, V)
        if sampler.options.guidance_scale:
            blind = before.clone()
            blind[: len(case["prompts"][row])] = model.mask_token_id
            logits = guided(logits, model.logits(blind[None], at=at), sampler.options.guidance_scale)
        proposal = propose(logits, model.mask_token_id, sampler.options, Draws(None, None, None))
        yield at[0], proposal, (after != before)[at[0]], after[at[0]]


@torch.no_grad()
@pytest.mark.parametrize("case", picked(TIED))
def test_where_it_differs_the_published_steps_are_ours_up_to_ties(case):
    tied = False
    for row in range(len(case["prompts"])):
        for _, proposal, written, tokens in published_steps(case, row):
            sure = proposal.confidence[0]
            assert torch.equal(tokens[written], proposal.tokens[0, written])
            if written.any() and not written.all():
                assert sure[written].min() >= sure[~written].max()
                tied |= bool(sure[written].min() == sure[~written].max())
    assert tied


@torch.no_grad()
@pytest.mark.parametrize("case", picked(PADDING_SCORES))
def test_but_for_the_first_token_scored_from_padding_the_published_steps_are_ours(case):
    seen, longest = False, max(rows.shape[1] for rows in published_rows(case))
    for row, canvases in enumerate(published_rows(case)):
        from_padding = canvases.shape[1] < longest
        for at, proposal, written, tokens in published_steps(case, row):
            counts = (at != 0) if from_padding else torch.ones_like(written)
            sure, in_, out = proposal.confidence[0], written & counts, ~written & counts
            seen |= bool((written & ~counts).any())
            assert torch.equal(tokens[in_], proposal.tokens[0, in_])
            if in_.any() and out.any():
                assert sure[in_].min() >= sure[out].max()  # positions 0 and 1 of a shifted model tie
    assert seen


@torch.no_grad()
@pytest.mark.parametrize("case", picked(CAPPED))
def test_the_published_threshold_stops_at_the_schedule(case):
    """Each published step writes the surest of what ours would write, as many as the schedule has come to."""
    (canvases,) = published_rows(case)
    params, mask = case["params"], denoiser().mask_token_id
    counts = quota_counts(params["max_new_tokens"], params["steps"], "schedule", SCHEDULES[case["scheduler"]])
    sampler = sampler_of(case, commit="threshold", threshold=params["threshold"])
    for step, (_, proposal, written, tokens) in enumerate(published_steps(case, 0)):
        masked = torch.ones_like(proposal.tokens, dtype=torch.bool)
        allowed = sampler.rule.select(proposal, masked, torch.zeros(1, dtype=torch.int64))[0]
        budget = int((canvases[step] == mask).sum()) - sum(counts[step + 1 :])
        order = proposal.confidence[0].masked_fill(~allowed, -torch.inf).argsort(descending=True, stable=True)
        want = torch.zeros_like(written)
        want[order[: min(budget, int(allowed.sum()))]] = True
        assert torch.equal(written, want)
        assert torch.equal(tokens[written], proposal.tokens[0, written])
    ours = our_rows(sampler, case)[0]
    assert len(ours) < len(canvases)
