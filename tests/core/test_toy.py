"""The exact toy model answers with the conditional marginals of its joint, whatever the layout of the input."""

from __future__ import annotations

import itertools

import pytest
import torch

from dllm_core.conformance.toy import ExactModel, entropy, random_joint, toy_denoiser
from dllm_core.models.attention import block_causal_pattern
from dllm_core.models.cache import BlockCache

VOCAB, LENGTH = 3, 4
MASK = VOCAB


@pytest.fixture(scope="module")
def joint():
    return random_joint(VOCAB, LENGTH, seed=1)


def marginal(joint: torch.Tensor, known: dict[int, int], axis: int) -> torch.Tensor:
    """p(x_axis | known) by summing the table, one state at a time."""
    mass = torch.zeros(VOCAB, dtype=torch.float64)
    for state in itertools.product(range(VOCAB), repeat=LENGTH):
        if all(state[i] == v for i, v in known.items() if i != axis):
            mass[state[axis]] += joint[state]
    return mass / mass.sum()


def test_every_canvas_gets_the_exact_posteriors(joint):
    canvases = torch.tensor(list(itertools.product(range(VOCAB + 1), repeat=LENGTH)))  # (256, 4)
    logits = toy_denoiser(joint).logits(canvases).detach()
    assert logits.shape == (256, LENGTH, VOCAB + 1)
    assert float(logits[..., MASK].max()) == ExactModel.log_zero
    for canvas, row in zip(canvases.tolist(), logits, strict=True):
        known = {i: v for i, v in enumerate(canvas) if v != MASK}
        for axis in range(LENGTH):
            torch.testing.assert_close(row[axis, :VOCAB].exp(), marginal(joint, known, axis))


def test_padding_on_either_side_and_shorter_inputs_are_summed_out(joint):
    denoiser = toy_denoiser(joint)
    want = denoiser.logits(torch.tensor([[1, MASK]]))[0]  # positions 2 and 3 are not there
    torch.testing.assert_close(want[1, :VOCAB].exp(), marginal(joint, {0: 1}, 1))
    left = denoiser.logits(torch.tensor([[0, 2, 1, MASK]]), torch.tensor([[False, False, True, True]]))[0]
    right = denoiser.logits(torch.tensor([[1, MASK, 2, 0]]), torch.tensor([[True, True, False, False]]))[0]
    torch.testing.assert_close(left[2:], want)
    torch.testing.assert_close(right[:2], want)


def test_rows_are_selected_before_the_head_and_the_head_gets_gradients(joint):
    denoiser = toy_denoiser(joint)
    canvas = torch.tensor([[0, MASK, MASK, 1], [MASK, 2, 1, 0]])
    rows = denoiser.logits(canvas, at=canvas == MASK)
    assert rows.shape == (3, VOCAB + 1)
    assert torch.equal(rows, denoiser.logits(canvas)[canvas == MASK])
    rows[:, :VOCAB].sum().backward()
    assert float(denoiser.model.head.weight.grad.abs().sum()) > 0


def test_impossible_evidence_stays_finite():
    joint = torch.zeros(2, 2, dtype=torch.float64)
    joint[0, 1] = 1.0
    logits = toy_denoiser(joint).logits(torch.tensor([[1, 2]]))[0]  # x_0 = 1 has probability zero
    assert bool(logits.isfinite().all())
    torch.testing.assert_close(logits[1, :2].exp(), torch.full((2,), 0.5, dtype=torch.float64))


def test_longer_inputs_are_refused(joint):
    with pytest.raises(ValueError, match="knows 4 positions"):
        toy_denoiser(joint).model(torch.zeros(1, 5, dtype=torch.int64))


def test_entropy_of_a_uniform_joint():
    assert entropy(torch.full((2, 2), 0.25)) == pytest.approx(2 * 0.6931471805599453)


@pytest.mark.parametrize("shifted", [False, True])
def test_each_column_knows_what_its_pattern_shows_it(joint, shifted):
    model = ExactModel(joint, shifted=shifted)
    canvas = torch.tensor([[0, 2, MASK, 1]])
    pattern = block_causal_pattern(LENGTH, 2)
    got = model(canvas, pattern).logits[0].exp()
    for column in range(LENGTH - shifted):
        known = {i: v for i, v in enumerate(canvas[0].tolist()) if v != MASK and pattern[0, 0, column, i]}
        want = marginal(joint, known, column + shifted)
        torch.testing.assert_close(got[column, :VOCAB].detach(), want)


def test_a_cache_hands_the_tokens_on(joint):
    canvas, positions = torch.tensor([[0, 2, MASK, 1]]), torch.arange(LENGTH)[None]
    pattern = block_causal_pattern(LENGTH, 2)
    want = ExactModel(joint)(canvas, pattern).logits
    model, kept = ExactModel(joint), BlockCache(1, LENGTH)
    for part in (slice(0, 2), slice(2, 4), slice(2, 4)):
        kept.place(positions[:, part], part.stop)
        got = model(canvas[:, part], pattern[:, :, part, : part.stop], positions[:, part], kept, True).logits
        torch.testing.assert_close(got, want[:, part])
