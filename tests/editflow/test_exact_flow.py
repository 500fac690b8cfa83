"""The process itself, on a flow small enough to write down: what the sampler's steps make of it, and what is exact."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from dllm_editflow import choosing
from dllm_editflow.apply import Rows, apply_edits
from dllm_editflow.choosing import Moment
from dllm_editflow.deciding import Decide, Decision, Limits
from dllm_editflow.grid import Move, moves
from dllm_editflow.kinds import BLANK
from dllm_editflow.options import EditFlowOptions
from dllm_editflow.reversing import turn_back
from dllm_editflow.state import EMPTY, lay_out

from dllm_core.noise.counter import key_from
from tests.editflow.tables import START, VOCAB, Flow, Table, distance, pushed

MASK = VOCAB - 1
OPTIONS = EditFlowOptions(temperature=1.0)


@pytest.fixture(scope="module")
def flow() -> Flow:
    return Flow()


def rows_of(texts: list[list[int]]) -> Rows:
    locked = [[place == 0 for place in range(len(text))] for text in texts]
    return lay_out(texts, locked, [[True] * len(text) for text in texts], 0, torch.device("cpu"))


@functools.cache
def keys_of(count: int) -> torch.Tensor:
    return torch.tensor([key_from(0, row) for row in range(count)])


def moment_of(rows: Rows, at: int, clock: torch.Tensor | None = None) -> Moment:
    count = len(rows.lengths)
    return Moment(keys_of(count), torch.full((count,), at), torch.zeros(count).double() if clock is None else clock)


def stepped(table: Table, rows: Rows, choose, moment: Moment) -> tuple[Rows, Decision]:
    """One step of the sampler's own parts."""
    decide = Decide(rows, choose, OPTIONS, moment.keys, (MASK, START), MASK, Limits(None, None))
    decision = decide(table.states(rows.input_ids, rows.lengths))
    after = apply_edits(rows, decision.edits, 2 * rows.input_ids.shape[1], 0).rows
    width = int(after.lengths.max())
    return Rows(*(each if each.dim() == 1 else each[:, :width] for each in after)), decision


def leapt(flow: Flow, steps: int, count: int) -> np.ndarray:
    """What tau-leaping on a grid of so many steps makes of the source. (S,)"""
    rows = rows_of(flow.drawn(flow.marginal(0.0), count, seed=1))
    plan = moves(OPTIONS, steps)
    factors = torch.tensor([move.factor for move in plan], dtype=torch.float64)
    for at, move in enumerate(plan):
        moment = moment_of(rows, at)
        choose = functools.partial(choosing.tau_leap, moment=moment, factors=factors, horizon=1)
        rows, _ = stepped(Table(flow, move.kappa), rows, choose, moment)
    return flow.histogram(rows.input_ids, rows.lengths)


def test_the_exact_rates_lead_from_source_to_target(flow):
    kappas = 1 - np.geomspace(1, 1e-7, 240)
    assert distance(pushed(flow, flow.marginal(0.0), kappas), flow.marginal(1.0)) < 1e-5
    halfway = pushed(flow, flow.marginal(0.0), np.linspace(0, 0.5, 20))
    assert distance(halfway, flow.marginal(0.5)) < 1e-6


def test_tau_leaping_converges_to_the_target(flow):
    few, more = (distance(leapt(flow, steps, 20_000), flow.marginal(1.0)) for steps in (16, 64))
    assert few < 0.10
    assert more < 0.03
    assert few / more > 3  # first order, down to the noise of the draws


@pytest.mark.slow
def test_tau_leaping_on_a_fine_grid_is_as_good_as_exact(flow):
    assert distance(leapt(flow, 256, 40_000), flow.marginal(1.0)) < 0.012


def test_the_next_event_is_that_of_the_exact_process(flow):
    """With rates that no time changes, the distribution at a time is the exponential of the generator."""
    end, table = -np.log(1 - 0.8), Table(flow, 0.5)
    exact = flow.marginal(0.0) @ torch.linalg.matrix_exp(torch.tensor(flow.generator(0.5) * end)).numpy()
    rows = rows_of(flow.drawn(flow.marginal(0.0), 20_000, seed=2))
    clock, ended, at = torch.zeros(20_000).double(), torch.zeros(20_000, dtype=torch.bool), 0
    while not ended.all():
        moment = moment_of(rows, at, clock)
        choose = functools.partial(choosing.next_event, moment=moment, end=end)
        rows, decision = stepped(table, rows, choose, moment)
        clock, ended, at = decision.chosen.clock, decision.chosen.ended, at + 1
    assert at > 2
    assert distance(flow.histogram(rows.input_ids, rows.lengths), exact) < 0.012


@pytest.mark.parametrize("kappa", [0.1, 0.5, 0.9])
def test_reverse_rates_turn_the_flow_around(flow, kappa):
    """Probability flows back along every edit as it flows forward, so both together leave the distribution alone."""
    marginal = flow.marginal(kappa)
    forward = flow.generator(kappa) / (1 - kappa)
    back = flow.reverse(kappa) / kappa
    flux, counter = marginal[:, None] * forward, marginal[:, None] * back
    off = ~np.eye(len(marginal), dtype=bool)
    assert np.abs(flux - counter.T)[off].max() < 1e-12
    assert flux[off].max() > 1e-3
    assert np.abs(marginal @ (forward + back)).max() < 1e-12


def test_a_step_back_is_exact_from_nothing():
    flow = Flow(
        [([BLANK] * len(target), target, share) for target, share in (([1, 2], 0.5), ([1], 0.3), ([2, 2], 0.2))]
    )
    rows = rows_of(flow.drawn(flow.marginal(0.8), 20_000, seed=3))
    move = Move((0.8 - 0.5) / 0.8, 0.0, 0.8, back=True)
    decision = turn_back(rows, moment_of(rows, 0), move, EMPTY, MASK)
    after = apply_edits(rows, decision.edits, rows.input_ids.shape[1], 0).rows
    assert distance(flow.histogram(after.input_ids, after.lengths), flow.marginal(0.5)) < 0.012


def test_corrections_go_as_far_as_they_come_back():
    plan = moves(EditFlowOptions(correction=(10.0, 0.5, 0.5), kappa="linear"), 8)
    at = 0.0
    for move in plan:
        assert move.kappa == pytest.approx(at)
        at = at * (1 - move.factor) if move.back else at + (1 - at) * move.factor
    assert at == pytest.approx(1.0)
    assert sum(move.back for move in plan) > 3


def test_a_step_goes_forward_by_its_share_and_back():
    """(c, a, b) = (2, 1, 0): by 1 + 2 t of a quarter, so from 1/4 to 5/8 and back to 1/2, from 1/2 to 1 and back."""
    plan = moves(EditFlowOptions(correction=(2.0, 1.0, 0.0), kappa="linear"), 4)
    assert [move.kappa for move in plan] == pytest.approx([0, 0.25, 0.625, 0.5, 1.0, 0.75])
    assert [move.factor for move in plan] == pytest.approx([0.25, 0.5, 0.2, 1.0, 0.25, 1.0])
    assert [move.back for move in plan] == [False, False, True, False, True, False]


def test_even_bad_alignments_learn_to_edit_little():
    """Independent strings of four letters, all of the source deleted and all of the target inserted, in turns.

    Source of the figures: arXiv:2506.09018, appendix F says about 20 times; exact values for alternating columns.
    """
    chances = letters_from("AAAA")
    assert chances["AAAA"] == pytest.approx(0.2009, abs=2e-4)
    assert chances["AAAB"] == pytest.approx(0.1184, abs=2e-4)
    assert chances["BBBB"] == pytest.approx(0.00909, abs=2e-5)
    assert sum(chance for text, chance in chances.items() if len(text) == 4) == pytest.approx(1, abs=1e-4)


def letters_from(source: str) -> dict[str, float]:
    """The probability of every text after the flow began at one source."""
    index, arrays = alternating_flow()
    here, there, done, mass = arrays
    ways_to_be = np.zeros((len(index), 9))
    for text, number, weight in configurations():
        ways_to_be[index[text], number] += weight
    probability = np.zeros(len(index))
    probability[index[source]] = 1.0
    degrees = np.arange(9)

    def slope(kappa: float, now: np.ndarray) -> np.ndarray:
        powers = np.array([kappa**d * (1 - kappa) ** (8 - d) for d in degrees])
        flow = now[here] * mass * powers[done] / (ways_to_be @ powers)[here]
        return np.bincount(there, flow, len(index)) - np.bincount(here, flow, len(index))

    for now, then in itertools.pairwise(1 - np.geomspace(1 - 1e-6, 1e-6, 200)):
        step = np.log((1 - now) / (1 - then))
        middle = 1 - np.sqrt((1 - now) * (1 - then))
        a = slope(now, probability)
        b = slope(middle, probability + step / 2 * a)
        c = slope(middle, probability + step / 2 * b)
        probability = probability + step / 6 * (a + 2 * b + 2 * c + slope(then, probability + step * c))
    return {text: probability[number] for text, number in index.items()}


def configurations(columns: int = 8):
    """Texts with the number of columns turned and the share of letters: deletions and insertions take turns."""
    for shown in itertools.product(("", "A", "B"), repeat=columns):
        turned = sum((letter == "") == (place % 2 == 0) for place, letter in enumerate(shown))
        yield "".join(shown), turned, 2.0 ** -sum(letter != "" for letter in shown)


@functools.cache
def alternating_flow() -> tuple[dict[str, int], tuple[np.ndarray, ...]]:
    """The texts, and of every edit that is still to be made: from, to, columns turned, and its share."""
    index = {text: number for number, text in enumerate(sorted({text for text, _, _ in configurations()}))}
    edges: dict[tuple[int, int, int], float] = {}
    for shown in itertools.product(("", "A", "B"), repeat=8):
        turned = sum((letter == "") == (place % 2 == 0) for place, letter in enumerate(shown))
        weight = 2.0 ** -sum(letter != "" for letter in shown)
        for place, letter in enumerate(shown):
            deletes = place % 2 == 0
            if deletes != (letter != ""):
                continue
            for new in ("",) if deletes else ("A", "B"):
                after = "".join([*shown[:place], new, *shown[place + 1 :]])
                key = index["".join(shown)], index[after], turned
                edges[key] = edges.get(key, 0.0) + weight * (1.0 if deletes else 0.5)
    here, there, done = (np.array(each) for each in zip(*edges, strict=True))
    return index, (here, there, done, np.array(list(edges.values())))
