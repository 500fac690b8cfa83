"""Where flows start, and that texts are coupled without an edit ever leaving its span."""

from __future__ import annotations

import pytest
import torch
from dllm_editflow.coupling import Row, couple, with_locked_start
from dllm_editflow.kappa import KAPPAS, get_kappa
from dllm_editflow.propagation import spread
from dllm_editflow.sources import Tokens, parse_source

from dllm_core.errors import DataError, OptionError

TOKENS = Tokens(mask=9, plain=torch.arange(9))
TARGET = [1, 2, 3, 4, 5, 6, 7, 8] * 4


def made(spec: str, seed: int = 0, draft: list[int] | None = None) -> list[int]:
    return parse_source(spec)(TARGET, draft, TOKENS, torch.Generator().manual_seed(seed))


def test_each_source_makes_what_it_says():
    assert made("empty") == []
    assert made("masks[length:3]") == [9, 9, 9]
    assert made("identity") == TARGET
    assert made("draft", draft=[4, 4]) == [4, 4]
    noise = made("noise[length:50]")
    assert len(noise) == 50
    assert 9 not in noise
    assert len(set(noise)) > 5
    assert made("corrupt[share:0]") == TARGET
    assert made("corrupt[share:0.4]") != TARGET
    assert made("corrupt", 1) != made("corrupt", 2)
    assert made("corrupt", 1) == made("corrupt", 1)


def test_a_corruption_makes_as_many_errors_as_asked_for():
    """The expected share of tokens with an error is `share`; its thirds are substitutions, deletions, insertions."""
    lengths, spoilt = 0, 0
    for seed in range(400):
        text = made("corrupt[share:0.3]", seed)
        lengths += len(text) - len(TARGET)
        same = sum(a == b for a, b in zip(text, TARGET, strict=False))
        spoilt += same < len(TARGET)
    assert spoilt > 350
    # insertions and deletions are equally many: the difference has mean 0 and, by 400 texts of 32 tokens, deviation 51
    assert abs(lengths) < 4 * 51


def test_a_mixture_has_its_shares():
    counts = {"identity": 0, "empty": 0}
    for seed in range(1000):
        counts["empty" if made("mix[identity:0.7,corrupt[share:0]:0.1,empty:0.2]", seed) == [] else "identity"] += 1
    assert abs(counts["empty"] - 200) < 4 * 13


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("mask", "masks"),
        ("masks[len:3]", "length"),
        ("masks[length:x]", "'x'"),
        ("masks[length:0]", "length"),
        ("corrupt[share:0.9]", "share"),
        ("mix[identity:0.5]", "add up to 1"),
        ("mix[nothing:1]", "nothing"),
        ("masks[3]", "OPTION:VALUE"),
        ("mas ks]", "NAME"),
    ],
)
def test_bad_sources_are_refused(spec, named):
    with pytest.raises(OptionError, match=named):
        parse_source(spec)


def test_a_draft_is_needed_and_belongs_to_one_span():
    with pytest.raises(DataError, match="source_ids"):
        made("draft")
    row = Row([0, 1, 0, 1], [False, True, False, True], [5])
    with pytest.raises(DataError, match="one span"):
        couple([row], parse_source("draft"), TOKENS, "optimal", torch.Generator())


def test_edits_stay_in_their_span():
    """A prompt that ends like the answer begins: aligned as a whole, its tokens would be matched to the answer's."""
    row = Row([1, 2, 1, 2, 1, 2], [False, False, True, True, False, True], None)
    for spec in ("empty", "masks[length:2]", "noise[length:3]", "identity"):
        source, target, editable = couple(
            [row], parse_source(spec), TOKENS, "optimal", torch.Generator().manual_seed(0)
        )
        locked = ~editable
        assert source[locked].tolist() == target[locked].tolist() == [1, 2, 1]
        assert [token for token in target[0].tolist() if token >= 0] == row.tokens


def test_the_first_token_is_always_locked():
    learned = Row([4, 5], [True, True], None)
    assert with_locked_start(learned, 7) == Row([7, 4, 5], [False, True, True], None)
    assert with_locked_start(learned, None) == Row([4, 5], [False, True], None)
    assert with_locked_start(Row([7, 5], [True, True], [7, 6]), 7) == Row([7, 5], [False, True], [6])
    prompted = Row([4, 5], [False, True], None)
    assert with_locked_start(prompted, 7) == prompted


@pytest.mark.parametrize("name", KAPPAS)
def test_schedules_of_kappa(name):
    kappa, time = get_kappa(name), torch.linspace(0, 1, 101, dtype=torch.float64)
    values = kappa.kappa(time)
    assert values[0] == 0
    assert values[-1] == pytest.approx(1)
    assert (values.diff() > 0).all()
    torch.testing.assert_close(kappa.inverse(values), time, atol=1e-7, rtol=0)
    slope = torch.func.vmap(torch.func.grad(kappa.kappa))(time)
    torch.testing.assert_close(kappa.derivative(time), slope)
    torch.testing.assert_close(kappa.weight(time[:-1]), (slope / (1 - values + 1e-6))[:-1])


def test_columns_turn_at_the_rate_that_their_neighbours_add():
    """d P(turned) / dt of every column is the mean rate over those that have not turned (finite difference)."""
    count, time, step, rate = 200_000, 0.6, 0.02, 4.0
    taking_part = torch.tensor([[True, True, False, True, True, True]]).expand(count, -1)
    kappa = get_kappa("cubic")
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(taking_part.shape, generator=generator)
    at = [
        spread(taking_part, torch.full((count,), t), draws, kappa, rate, torch.Generator().manual_seed(seed))
        for seed, t in enumerate((time - step / 2, time, time + step / 2))
    ]
    shares = [each.turned.double().mean(0) for each in at]
    slope = (shares[2] - shares[0]) / step
    predicted = ((~at[1].turned & taking_part) * at[1].rates).double().mean(0)
    # two means of 200,000 draws, divided by the step: a deviation of 0.08 at most
    torch.testing.assert_close(slope[taking_part[0]], predicted[taking_part[0]], atol=0.32, rtol=0)
    assert not at[1].turned[:, 2].any()
    alone = spread(taking_part, torch.full((count,), time), draws, kappa, 0.0, generator)
    assert torch.equal(alone.turned, taking_part & (draws < kappa.kappa(torch.tensor(time))))


def test_every_row_that_ends_beside_a_column_pulls_it():
    """Column by column: rows of M are intervals, and each whose end is a neighbour adds the rate once."""
    rate, kappa, time = 3.0, get_kappa("linear"), torch.full((40,), 0.5)
    generator = torch.Generator().manual_seed(0)
    taking_part = torch.rand(40, 12, generator=generator) < 0.8
    draws = torch.rand(40, 12, generator=generator)
    found = spread(taking_part, time, draws, kappa, rate, torch.Generator().manual_seed(1))
    again, reach = torch.Generator().manual_seed(1), rate * (0.5 - draws).clamp(min=0)
    left, right = (torch.poisson(reach, generator=again).long().tolist() for _ in range(2))
    most = 0
    for row in range(40):
        columns = taking_part[row].nonzero()[:, 0].tolist()
        started = [(place, column) for place, column in enumerate(columns) if draws[row, column] < 0.5]
        rows = [(place - left[row][column], place + right[row][column]) for place, column in started]
        for place, column in enumerate(columns):
            turned = any(first <= place <= last for first, last in rows)
            assert bool(found.turned[row, column]) == turned
            if not turned:
                pulls = sum(first <= each <= last for first, last in rows for each in (place - 1, place + 1))
                assert found.rates[row, column].item() == pytest.approx(2.0 + rate * pulls, rel=1e-4)
                most = max(most, pulls)
    assert most > 1
