"""What a commit rule declares is measured, and nothing else; its history belongs to the block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from dllm_core.conformance.toy import random_joint, toy_denoiser
from dllm_core.samplers import BlockSize, CommitRule, MaskedOptions, MDLMSampler, Proposal
from dllm_core.samplers.proposals import Draws, propose
from dllm_core.samplers.statistics import NEEDS

VOCAB, MASK = 3, 3
LOGITS = torch.tensor([[[2.0, 1.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 4.0, 4.0, 0.0]]])  # (1, 3, V + 1)


@dataclass(frozen=True, kw_only=True)
class Spy(CommitRule):
    """Commits the first masked position, and notes what it is given."""

    seen: ClassVar[list[tuple[Proposal, torch.Tensor]]] = []
    sizes: ClassVar[list[BlockSize]] = []

    def remember(self, size: BlockSize) -> torch.Tensor:
        self.sizes.append(size)
        return torch.zeros(size.rows, size.places + 1)

    def select(self, proposal: Proposal, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        self.seen.append((proposal, masked.clone()))
        if proposal.history is not None:
            proposal.history.scatter_add_(1, proposal.places, masked.float())
        return masked & (masked.cumsum(1) == 1)


def spied(monkeypatch: pytest.MonkeyPatch, needs: tuple[str, ...], **options: object) -> MDLMSampler:
    for name in ("seen", "sizes"):
        monkeypatch.setattr(Spy, name, [])
    monkeypatch.setattr(Spy, "needs", needs)
    sampler = MDLMSampler(toy_denoiser(random_joint(VOCAB, 8, seed=0), pad=0), **options)
    sampler.rule = Spy()
    return sampler


@pytest.mark.parametrize("need", [None, *NEEDS])
def test_only_what_is_declared_is_measured(monkeypatch, need):
    needs = () if need is None else (need,) if need != "history" else ("history", "places")
    spied(monkeypatch, needs, max_new_tokens=4, block_size=2).sample([[1]])
    assert len(Spy.seen) == 4
    for proposal, _ in Spy.seen:
        given = {name for name in NEEDS if getattr(proposal, name) is not None}
        assert given == set(needs)
    assert len(Spy.sizes) == (2 if need == "history" else 0)


def test_statistics_are_those_of_the_distribution():
    proposal = propose(LOGITS.clone(), MASK, MaskedOptions(), Draws(None, None, None), NEEDS)
    probabilities = LOGITS.softmax(-1)
    torch.testing.assert_close(proposal.log_probs.exp(), probabilities)
    torch.testing.assert_close(proposal.best_two, probabilities.sort(-1, descending=True).values[..., :2])
    writable = LOGITS[..., :MASK].softmax(-1)  # the mask token is never written
    torch.testing.assert_close(proposal.entropy, -(writable * writable.log()).sum(-1))


def test_what_ranks_last_by_confidence_is_the_most_uncertain():
    options = MaskedOptions(suppress_confidence_tokens=(0,))
    proposal = propose(LOGITS.clone(), MASK, options, Draws(None, None, None), ("entropy",))
    assert proposal.tokens.tolist() == [[0, 0, 1]]
    assert proposal.entropy.isinf().tolist() == [[True, True, False]]


def test_statistics_follow_temperature_where_confidence_does():
    options = MaskedOptions(temperature=0.5, confidence_distribution="sampling")
    draws = Draws(torch.full((1, 3), 0.5, dtype=torch.float64), None, None)
    proposal = propose(LOGITS.clone(), MASK, options, draws, ("log_probs",))
    torch.testing.assert_close(proposal.log_probs, (LOGITS / 0.5).log_softmax(-1))


def test_places_count_from_the_start_of_the_block_and_filler_stands_behind_it(monkeypatch):
    spied(monkeypatch, ("places",), max_new_tokens=4, block_size=4).infill([[1, MASK, 0, MASK, MASK, 1], [MASK, 2]])
    first = [proposal.places.tolist() for proposal, _ in Spy.seen]
    assert first == [[[1, 3], [0, 4]], [[3], [4]], [[0]]]  # the second row is finished with the first block


def test_a_history_is_kept_row_by_row_and_goes_with_the_block(monkeypatch):
    sampler = spied(monkeypatch, ("history", "places"), max_new_tokens=4, block_size=2)
    sampler.infill([[MASK] * 4, [MASK, MASK, 1]])
    assert [(size.rows, size.places, size.vocab_size, size.mask_token_id) for size in Spy.sizes] == [
        (2, 2, VOCAB + 1, MASK),
        (1, 2, VOCAB + 1, MASK),  # the finished row's part is not made again
    ]
    waited = [proposal.history[:, :2].tolist() for proposal, _ in Spy.seen[::2]]
    assert waited == [[[1, 2], [1, 2]], [[1, 2]]]  # how many steps each position was open
    assert Spy.seen[0][0].history is Spy.seen[1][0].history
    assert Spy.seen[1][0].history is not Spy.seen[2][0].history


def test_two_runs_of_one_sampler_share_no_history(monkeypatch):
    sampler = spied(monkeypatch, ("history", "places"), max_new_tokens=2)
    states = [sampler.start([[1]]), sampler.start([[2]])]
    assert states[0].block.history is not states[1].block.history
