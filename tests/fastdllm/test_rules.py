"""Vectorised rules against loops that follow the papers, on confidences with ties; and what the theorems say.

Shapes: B rows, M open positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from dllm_fastdllm import Credit, Draft, Entropy, Factor, Frechet, Hierarchical, Klass, Threshold
from dllm_fastdllm.rules.prefix import commit_prefix, surest_first
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dllm_core.samplers import BlockSize, MaskedOptions, Proposal
from dllm_core.samplers.proposals import Draws, propose

# A coarse grid, so that ties and exact equality with the bounds happen; multiples of 1/64 are exact in float32.
CONFIDENCE = st.integers(0, 64).map(lambda n: n / 64)
ROWS = st.lists(st.tuples(CONFIDENCE, st.booleans()), min_size=1, max_size=9)
OPTION = st.integers(0, 64).map(lambda n: n / 64)


def ranked(row: list[tuple[float, bool]]) -> list[tuple[float, int]]:
    """(confidence, position) of the masked positions, the surest first, ties from the left."""
    return sorted(((c, i) for i, (c, masked) in enumerate(row) if masked), key=lambda pair: (-pair[0], pair[1]))


def prefix(row: list[tuple[float, bool]], count: int) -> set[int]:
    return {position for _, position in ranked(row)[:count]}


def loop_threshold(row, threshold):
    chosen = {i for i, (c, masked) in enumerate(row) if masked and c >= threshold}
    return chosen or prefix(row, 1)


def loop_factor(row, factor):
    counts = [n for n, (c, _) in enumerate(ranked(row), start=1) if c >= 1 - factor / (n + 1)]
    return prefix(row, max(counts, default=1))


def loop_frechet(row, delta):
    order, total, count = ranked(row), 0.0, 1
    for n, (c, _) in enumerate(order, start=1):
        total += c
        if total - (n - 1) - (1 - c) > delta:
            count = n
    return prefix(row, count)


def select(rule, row: list[tuple[float, bool]]) -> set[int]:
    confidence = torch.tensor([[c for c, _ in row]])
    masked = torch.tensor([[m for _, m in row]])
    proposal = Proposal(torch.zeros_like(confidence, dtype=torch.long), confidence, confidence)
    chosen = rule.select(proposal, masked, torch.ones(1, dtype=torch.long))
    return set(chosen[0].nonzero().flatten().tolist())


@settings(max_examples=300, deadline=None)
@given(row=ROWS, option=OPTION)
def test_each_rule_selects_what_its_loop_selects(row, option):
    assert select(Threshold(threshold=option), row) == loop_threshold(row, option)
    assert select(Factor(factor=2 * option), row) == loop_factor(row, 2 * option)
    assert select(Frechet(delta=option), row) == loop_frechet(row, option)


@settings(max_examples=200, deadline=None)
@given(confidence=CONFIDENCE, count=st.integers(1, 9), delta=OPTION)
def test_frechet_is_factor_where_all_are_equally_sure(confidence, count, delta):
    row = [(confidence, True)] * count
    doubt = 1 - confidence
    on_the_bound = any((n + 1) * doubt == 1 - delta for n in range(1, count + 1))  # > in one paper, >= in the other
    if not on_the_bound:
        assert select(Frechet(delta=delta), row) == select(Factor(factor=1 - delta), row)


@settings(max_examples=200, deadline=None)
@given(row=ROWS, delta=OPTION)
def test_frechet_never_commits_fewer_than_factor(row, delta):
    assume(delta < 0.999)  # strictly inside the factor's bound, because at it one rule says > and the other >=
    assert select(Factor(factor=1 - delta - 1e-6), row) <= select(Frechet(delta=delta), row)


def test_the_last_position_is_not_committed_when_it_fails_the_bound():
    # Published forks commit one position too many at the end of a block: there 0.1 would go in.
    row = [(0.99, True), (0.98, True), (0.1, True)]
    assert select(Factor(factor=1.0), row) == {0, 1}
    assert select(Factor(factor=0.0), row) == {0}


def test_rows_do_not_see_each_other_and_filler_is_left_alone():
    confidence = torch.tensor([[0.2, 0.1, 0.99], [0.95, 0.97, 0.99]])
    masked = torch.tensor([[True, True, False], [True, True, True]])
    proposal = Proposal(torch.zeros(2, 3, dtype=torch.long), confidence, confidence)
    quota = torch.ones(2, dtype=torch.long)
    for rule in (Threshold(threshold=0.9), Factor(factor=1.0), Frechet(delta=0.25)):
        assert rule.select(proposal, masked, quota).tolist() == [[True, False, False], [True, True, True]]


def test_suppressed_confidence_still_makes_progress():
    row = [(float("-inf"), True), (float("-inf"), True), (0.9, False)]
    for rule in (Threshold(), Factor(), Frechet()):
        assert select(rule, row) == {0}


# Rules that look at entropy, at places, or at what came before.

WORDS, MASK = 6, 5
NUMBER = st.integers(-8, 8).map(lambda n: n / 2)  # logits on a grid, so that ties happen


def loop_entropy(row, bound):
    """``row`` holds (certainty = -entropy, masked)."""
    spent, chosen = 0.0, set()
    for certainty, position in ranked(row):
        if chosen and spent > bound:
            break
        chosen.add(position)
        spent -= certainty
    return chosen


@settings(max_examples=200, deadline=None)
@given(row=ROWS, bound=OPTION)
def test_entropy_selects_what_its_loop_selects(row, bound):
    uncertain = [(-c, masked) for c, masked in row]
    entropy, masked = torch.tensor([[c for c, _ in row]]), torch.tensor([[m for _, m in row]])
    proposal = Proposal(torch.zeros_like(masked, dtype=torch.long), 1 - entropy, 1 - entropy, entropy=entropy)
    chosen = Entropy(entropy_bound=4 * bound).select(proposal, masked, torch.ones(1, dtype=torch.long))
    assert set(chosen[0].nonzero().flatten().tolist()) == loop_entropy(uncertain, 4 * bound)


def loop_hierarchical(row, low, high):
    runs, before = [], None
    for place, (c, masked) in enumerate(row):
        if masked:
            if before != place - 1:
                runs.append([])
            runs[-1].append((c, place))
            before = place
    heads = {max(run, key=lambda pair: (pair[0], -pair[1])) for run in runs}
    chosen = {place for c, place in heads if c > low} | {p for run in runs for c, p in run if c > high}
    return chosen | prefix(row, 1)


@settings(max_examples=300, deadline=None)
@given(row=ROWS, options=st.tuples(OPTION, OPTION).map(sorted), filler=st.integers(0, 3))
def test_hierarchical_selects_what_its_loop_selects(row, options, filler):
    low, high = options
    places = [place for place, (_, masked) in enumerate(row) if masked]  # the open positions, as the loop lays them out
    confidence = torch.tensor([[row[place][0] for place in places] + [1.0] * filler])
    masked = torch.tensor([[True] * len(places) + [False] * filler])
    if masked.shape[1] == 0:
        return
    at = torch.tensor([places + [len(row)] * filler])
    proposal = Proposal(torch.zeros_like(at), confidence, confidence, places=at)
    rule = Hierarchical(low_threshold=low, threshold=high)
    chosen = rule.select(proposal, masked, torch.ones(1, dtype=torch.long))[0]
    assert {at[0, slot].item() for slot in chosen.nonzero().flatten()} == loop_hierarchical(row, low, high)


LONG_ROWS = st.lists(st.tuples(CONFIDENCE, st.booleans()), min_size=1, max_size=40)


def loop_draft(row, threshold):
    sure = [position for c, position in ranked(row) if c > threshold]
    cap = min(max(int(0.7 * len(ranked(row))), 5), 20)
    return set(sure[:cap]) or prefix(row, 1)


@settings(max_examples=200, deadline=None)
@given(row=LONG_ROWS, threshold=OPTION)
def test_draft_selects_what_its_loop_selects(row, threshold):
    assert select(Draft(threshold=threshold), row) == loop_draft(row, threshold)


def run_of(rule, steps: list[torch.Tensor]) -> list[tuple[dict[int, float], set[int]]]:
    """Confidences and selection of each step, by place, of a rule in a block with these logits (M, V) at its steps."""
    count = len(steps[0])
    history = rule.remember(BlockSize(1, count, WORDS, MASK, torch.device("cpu"))) if "history" in rule.needs else None
    left, results = list(range(count)), []
    for logits in steps:
        if not left:
            break
        filler = count - len(left)
        places = torch.tensor([left + [count] * filler])
        masked = places < count
        weighed = rule.weigh(logits[left + [0] * filler][None], places, history)
        proposal = propose(weighed, MASK, MaskedOptions(), Draws(None, None, None), rule.needs)
        proposal = replace(proposal, places=places, history=history)
        chosen = rule.select(proposal, masked, torch.ones(1, dtype=torch.long))[0].tolist()
        surety = dict(zip(left, proposal.confidence[0].tolist(), strict=False))
        results.append((surety, {place for place, took in zip(left, chosen, strict=False) if took}))
        left = [place for place in left if place not in results[-1][1]]
    return results


@st.composite
def blocks(draw) -> list[torch.Tensor]:
    """Logits (M, V) of a block at up to five steps; some repeat, so that distributions stand still."""
    count = draw(st.integers(1, 4))
    rows = st.lists(st.lists(NUMBER, min_size=WORDS, max_size=WORDS), min_size=count, max_size=count)
    kinds = [torch.tensor(draw(rows)) for _ in range(2)]
    return [kinds[draw(st.integers(0, 1))] for _ in range(5)]


@settings(max_examples=150, deadline=None)
@given(steps=blocks(), threshold=OPTION, kl=st.sampled_from([0.0, 0.01, 0.5]), still=st.integers(1, 2))
def test_klass_selects_what_its_loop_selects(steps, threshold, kl, still):
    got = run_of(Klass(threshold=threshold, kl_threshold=kl, still_steps=still), [s.clone() for s in steps])
    moves: list[list[float]] = []
    before, left = None, set(range(len(steps[0])))
    for logits, (surety, chosen) in zip(steps, got, strict=False):
        now = logits.softmax(-1)
        moved = now.new_full((len(now),), torch.inf) if before is None else (now * (now / before).log()).sum(-1)
        moves.append(moved.tolist())
        before = now
        recent = moves[-still:]
        calm = {p for p in left if len(recent) == still and all(step[p] < kl for step in recent)}
        ready = {p for p in calm if surety[p] > threshold}
        assert chosen == (ready or {max(left, key=lambda p: (surety[p], -p))})
        left -= chosen


@settings(max_examples=150, deadline=None)
@given(steps=blocks(), threshold=st.sampled_from([0.3, 0.5, 0.9]), weight=st.sampled_from([0.0, 0.7, 3.0]))
def test_credit_is_what_its_loop_gives(steps, threshold, weight):
    rule = Credit(threshold=threshold, credit_weight=weight)
    account = torch.zeros(len(steps[0]), WORDS, dtype=torch.float64)  # dense, every token of every position
    for logits, (surety, chosen) in zip(steps, run_of(rule, [s.clone() for s in steps]), strict=False):
        account *= rule.credit_decay
        for place in surety:
            best = max(range(MASK), key=lambda token, at=place: (logits[at, token], -token))
            account[place, best] += logits[place].softmax(-1)[best] ** rule.credit_power
        weighed = (logits + rule.credit_weight * account.log1p()).softmax(-1)
        want = {place: weighed[place, :MASK].max().item() for place in surety}
        assert all(math.isclose(surety[place], want[place], rel_tol=1e-5) for place in surety)
        assert chosen == loop_threshold([(surety.get(p, 0.0), p in surety) for p in range(len(logits))], threshold)


def test_a_token_that_leads_step_after_step_is_written_earlier():
    logits = torch.tensor([[top, 0.0, 0.0, 0.0, 0.0, -9.0] for top in (2.0, 1.5, 1.5)])
    steps = [logits] * 3
    first = [chosen for _, chosen in run_of(Credit(threshold=0.7, credit_weight=0.0), [s.clone() for s in steps])]
    credited = [chosen for _, chosen in run_of(Credit(threshold=0.7, credit_weight=1.0), [s.clone() for s in steps])]
    assert first == [{0}, {1}, {2}]
    assert credited == [{0}, {1, 2}]


def test_filler_is_given_no_credit():
    rule = Credit()
    history = rule.remember(BlockSize(1, 3, WORDS, MASK, torch.device("cpu")))
    logits = torch.randn(1, 4, WORDS, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[1, 3, 3, 2]])  # samplers that edit propose at written positions too
    for _ in range(2):
        changed = (rule.weigh(logits, places, history) != logits).any(-1)
        assert changed.tolist() == [[True, False, False, True]]


def test_a_position_that_moved_waits_although_it_is_sure():
    still = torch.tensor([[9.0, 0, 0, 0, 0, -9], [8.0, 0, 0, 0, 0, -9], [7.0, 0, 0, 0, 0, -9], [6.0, 0, 0, 0, 0, -9]])
    moving = still.clone()
    moving[3] = torch.tensor([0, 6.0, 0, 0, 0, -9])
    chosen = [took for _, took in run_of(Klass(threshold=0.5), [s.clone() for s in (still, still, moving, moving)])]
    assert chosen == [{0}, {1}, {2}, {3}]
    # Without a step that moves, the two that are left are calm at the third step and go together.
    assert [took for _, took in run_of(Klass(threshold=0.5), [still.clone() for _ in range(4)])] == [{0}, {1}, {2, 3}]


# Rules with one defect each, which the loops above must tell from the right ones.


@dataclass(frozen=True, kw_only=True)
class FactorFromRankZero(Factor):
    def select(self, proposal, masked, quota):
        confidence, order = surest_first(proposal.confidence, masked)
        rank = torch.arange(confidence.shape[1])
        return commit_prefix(confidence >= 1 - self.factor / (rank + 1), order, masked)


@dataclass(frozen=True, kw_only=True)
class FactorTakesTheFailureToo(Factor):
    def select(self, proposal, masked, quota):
        confidence, order = surest_first(proposal.confidence, masked)
        rank = torch.arange(1, confidence.shape[1] + 1)
        accepted = confidence >= 1 - self.factor / (rank + 1)
        return commit_prefix(accepted.roll(1, 1), order, masked)


@dataclass(frozen=True, kw_only=True)
class StrictThreshold(Threshold):
    def select(self, proposal, masked, quota):
        confidence, order = surest_first(proposal.confidence, masked)
        return commit_prefix(confidence > self.threshold, order, masked)


@dataclass(frozen=True, kw_only=True)
class FrechetWithoutItsOwnDoubt(Frechet):
    def select(self, proposal, masked, quota):
        confidence, order = surest_first(proposal.confidence, masked)
        return commit_prefix(1 - (1 - confidence.double()).cumsum(1) > self.delta, order, masked)


MUTANTS = [
    (FactorFromRankZero(), lambda row: loop_factor(row, 1.0)),
    (FactorTakesTheFailureToo(), lambda row: loop_factor(row, 1.0)),
    (StrictThreshold(threshold=0.5), lambda row: loop_threshold(row, 0.5)),
    (FrechetWithoutItsOwnDoubt(), lambda row: loop_frechet(row, 0.25)),
]


@pytest.mark.parametrize(("mutant", "loop"), MUTANTS, ids=[type(mutant).__name__ for mutant, _ in MUTANTS])
def test_a_rule_that_is_off_by_one_is_told_from_the_right_one(mutant, loop):
    numbers = torch.Generator().manual_seed(0)
    rows = [[(n / 64, True) for n in torch.randint(20, 65, (6,), generator=numbers).tolist()] for _ in range(200)]
    assert any(select(mutant, row) != loop(row) for row in rows)
    right = type(mutant).__bases__[0](**vars(mutant))
    assert all(select(right, row) == loop(row) for row in rows)


RULES = [Threshold(), Factor(), Frechet(), Entropy(), Klass(), Credit(), Hierarchical(), Draft()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_step_of_a_rule_is_one_graph(rule):
    """Without a break, so that it can be captured together with the forward."""
    size = BlockSize(2, 4, WORDS, MASK, torch.device("cpu"))
    places = torch.tensor([[0, 1, 2, 3], [1, 3, 4, 4]])
    logits = torch.randn(2, 4, WORDS, generator=torch.Generator().manual_seed(0))

    def step(logits, places, history):
        masked = places < 4
        weighed = rule.weigh(logits, places, history)
        proposal = propose(weighed.clone(), MASK, MaskedOptions(), Draws(None, None, None), rule.needs)
        proposal = replace(proposal, places=places, history=history)
        return rule.select(proposal, masked, torch.ones(2, dtype=torch.long))

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    histories = [rule.remember(size) if "history" in rule.needs else None for _ in range(2)]
    for _ in range(3):
        assert torch.equal(compiled(logits, places, histories[0]), step(logits, places, histories[1]))
