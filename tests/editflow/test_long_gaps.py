"""Many tokens missing behind one: a step inserts one of them, so steps are divided where more are due."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from dllm_editflow.models.heads import EditStates
from dllm_editflow.models.options import HeadOptions
from dllm_editflow.sampler import EditFlowSampler
from dllm_editflow.toy import EditToyAdapter
from torch import Tensor, nn

from dllm_core.models.denoiser import Denoiser

LENGTHS, SHARES = torch.tensor([2, 6, 10]), torch.tensor([0.3, 0.3, 0.4]).double()
TARGETS = {tuple(range(1, n + 1)): share for n, share in zip(LENGTHS.tolist(), SHARES.tolist(), strict=True)}
BOS, END, PAD, MASK, VOCAB = 0, 11, 12, 13, 14
EMPTY = {"kappa": "linear", "source": "empty", "max_new_tokens": 16, "temperature": 1.0}


class Counting(nn.Module):
    """The exact model of a flow from nothing to the texts 1, 2, ..., n.

    Between a and b exactly b - a - 1 are missing, each as likely to come next; behind the last, a, the share of the
    texts that begin there and go on.
    """

    def __init__(self, *, timed: bool = True, endless: bool = False) -> None:
        super().__init__()
        self.edit_options = HeadOptions(edit_time_embedding=timed)
        self.timed, self.endless, self.passes = timed, endless, 0
        self.times: list[float] = []
        self.embedding, self.head = nn.Embedding(VOCAB, 1), nn.Linear(VOCAB, VOCAB, bias=False)
        self.head.weight.data = torch.eye(VOCAB)
        self.config = None

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids, attention_mask=None, position_ids=None, *, time, edits, edits_are_shifted=None):
        self.passes += 1
        self.times += time.tolist()
        kappa = time.double() if self.timed else torch.full(time.shape, 0.5).double()
        due = missing(input_ids, kappa)  # (B, L, V)
        rates = torch.zeros(*input_ids.shape, 3, dtype=torch.float64)
        rates[..., 2] = due.sum(-1) + 3 * self.endless
        hidden = due.clamp(min=1e-30).log().float()
        return edits(EditStates(rates, hidden, hidden, self.head, self.head))


def missing(ids: Tensor, kappa: Tensor) -> Tensor:
    """The chance that a token is missing behind another; (B, L, V)."""
    real = torch.where(ids < END, ids, END)
    follows = nn.functional.pad(real[:, 1:], (0, 1), value=END)[..., None]  # (B, L, 1)
    token = torch.arange(VOCAB)
    fits = (token > real[..., None]) & (token < follows)
    last = real.where(real < END, 0).amax(1)
    weight = SHARES * (1 - kappa).clamp(min=1e-12)[:, None] ** (LENGTHS - last[:, None]).clamp(min=0)
    weight = weight * (last[:, None] <= LENGTHS)
    weight = weight / weight.sum(1, keepdim=True)  # (B, texts)
    goes_on = (weight[..., None] * (token <= LENGTHS[:, None])).sum(1)[:, None]  # (B, 1, V)
    return torch.where(follows == END, goes_on, 1.0) * fits


def denoiser(**traits: bool) -> Denoiser:
    return Denoiser(Counting(**traits), EditToyAdapter(), special_ids={"mask": MASK, "pad": PAD, "bos": BOS})


def written(model: Denoiser, count: int = 1, **options: object) -> list[list[int]]:
    out = EditFlowSampler(model, **EMPTY | options).sample([[BOS]] * count)
    return [row[1:length] for row, length in zip(out.sequences.tolist(), out.lengths.tolist(), strict=True)]


def off(texts: list[list[int]]) -> float:
    """Total variation from the targets, over texts."""
    found = Counter(map(tuple, texts))
    return sum(abs(found[text] / len(texts) - TARGETS.get(text, 0)) for text in {*found, *TARGETS}) / 2


@pytest.mark.parametrize(("steps", "most", "least"), [(1, 0.33, 0.99), (2, 0.31, 0.7), (4, 0.25, 0.5)])
def test_texts_are_nearer_to_the_targets_than_with_clipped_probabilities(steps, most, least):
    """On a grid even in time with a linear kappa the factors are the same, and above 1 they are 1."""
    divided, clipped = written(denoiser(), 1000, steps=steps), written(denoiser(), 1000, steps=steps, grid="time")
    assert off(divided) < most
    assert off(clipped) > least
    assert sum(tuple(text) not in TARGETS for text in divided) < 0.05 * len(divided)


def test_a_step_is_divided_as_often_as_tokens_are_missing():
    """The first pass inserts one for certain, and so does each that follows until no gap wants two."""
    model = denoiser()
    texts = written(model, 20, steps=1)
    assert model.bare_model.passes <= max(map(len, texts))
    times = model.bare_model.times
    assert times[0] == 0
    assert all(0 <= time < 1 for time in times)


@pytest.mark.parametrize("timed", [True, False])
def test_a_row_divides_its_steps_alone_as_in_a_batch(timed):
    options = {"steps": 3, "seed": [5, 6, 7]}
    together = written(denoiser(timed=timed), 3, **options)
    alone = [written(denoiser(timed=timed), 1, steps=3, seed=[seed])[0] for seed in options["seed"]]
    assert together == alone


def test_looking_ahead_ends_where_going_step_by_step_does():
    ahead, by_step = denoiser(timed=False), denoiser(timed=False)
    by_step.bare_model.edit_options = HeadOptions(edit_time_embedding=True)  # asked in every step, whatever it knows
    assert written(ahead, 30, steps=6) == written(by_step, 30, steps=6)
    alone = denoiser(timed=False)
    written(alone, steps=64)
    assert alone.bare_model.passes <= 20


def test_an_endless_wish_to_insert_ends_at_the_room_there_is():
    model = denoiser(endless=True)
    assert [len(text) for text in written(model, 2, steps=2)] == [16, 16]
    assert model.bare_model.passes <= 18


def test_steps_are_divided_max_passes_times():
    model = denoiser(endless=True)
    written(model, 2, steps=2, max_passes=3)
    assert model.bare_model.passes == 2 + 3


def test_times_of_the_log_rise_within_a_step():
    sampler = EditFlowSampler(denoiser(), **EMPTY, steps=1)
    state = sampler.start([[BOS]])
    while not state.finished:
        sampler.step(state)
    times = [operation.time for operation in state.operations[0]]
    assert times == sorted(times)
    assert len(set(times)) > 1
    assert max(times) < 1
