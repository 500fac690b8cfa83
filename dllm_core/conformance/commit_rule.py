"""`CommitRuleTests`: what every commit rule must hold, on made-up proposals and inside the sampling loop.

Shapes: B rows, M open positions (slots), V words.
"""

from __future__ import annotations

import dataclasses
import itertools
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_core import registry
from dllm_core.config import from_mapping
from dllm_core.conformance.expect import expect, expect_equal
from dllm_core.conformance.part_suite import PartSuite
from dllm_core.conformance.sampler_chance import process_seed
from dllm_core.conformance.sampler_suite import MASK, NEW, PROMPTS, fresh, steps_of, texts
from dllm_core.conformance.suite import requires
from dllm_core.samplers import BlockSize, CommitRule, Proposal
from dllm_core.samplers.statistics import NEEDS, STATISTICS

ROWS, SLOTS, CASES = 4, 8, 12
PLACES, WORDS = 12, 512  # of a block; enough words that a confidence of 1/256 is the best


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """Another rule that selects the same.

    Args:
        options: of the rule under test.
        other: id or class of the other rule.
        other_options: its options.
        quota: commits that the schedule asks for in every row with masks; None: any number.
    """

    other: str | type[CommitRule]
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    other_options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    quota: int | None = None


@dataclass(frozen=True)
class Case:
    """One call of a rule: masked slots stand left of the filler, as in the loop."""

    proposal: Proposal
    masked: Tensor  # (B, M) bool
    quota: Tensor  # (B,) int64

    def with_confidence(self, confidence: Tensor) -> Case:
        """The same with that confidence, which is also the priority, and distributions to match."""
        given = self.proposal
        return dataclasses.replace(self, proposal=whole_proposal(given.tokens, confidence, confidence, given.places))

    def to(self, *, device: str | None = None, dtype: torch.dtype | None = None) -> Case:
        """The same on a device, or with confidence and priority in another precision."""
        moved = self._each(lambda part: part.to(device))
        ranks = {name: getattr(moved.proposal, name).to(dtype=dtype) for name in ("confidence", "priority")}
        return dataclasses.replace(moved, proposal=dataclasses.replace(moved.proposal, **ranks))

    def take(self, rows: slice, slots: Tensor | slice) -> Case:
        """Some rows and slots only, or slots in another order."""
        return self._each(lambda part: part[rows] if part.dim() == 1 else part[rows][:, slots])

    def asked_by(self, rule: CommitRule) -> Case:
        """What the loop gives the rule in the first step of a block: what it declares, and a new history."""
        given = {name: getattr(self.proposal, name) if name in rule.needs else None for name in (*STATISTICS, "places")}
        if "history" in rule.needs:
            given["history"] = rule.remember(BlockSize(len(self.masked), PLACES, WORDS, MASK, self.masked.device))
        return dataclasses.replace(self, proposal=dataclasses.replace(self.proposal, **given))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Case:
        values = {field.name: getattr(self.proposal, field.name) for field in dataclasses.fields(Proposal)}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return Case(Proposal(**changed), change(self.masked), change(self.quota))


class CommitRuleTests(PartSuite):
    """The checks of a commit rule; a subclass names it and declares what it can do.

    Attributes:
        surest_first: never leaves out a position while it commits a less sure one in the same row.
        ties_go_left: of equally sure positions it takes the left ones.
        order_free: looks at the positions' values only, not at where they stand.
        asks_nothing: works on tensors alone, without waiting for the device.
        monotone_in: options whose values, in the order given, never commit more: ``{"threshold": (0.2, 0.5, 0.9)}``.
        equivalent_to: other rules that select the same (`Equivalence`).

    Example:
        >>> class TestThreshold(CommitRuleTests):
        ...     component = "acme/threshold"
        ...     options = {"threshold": 0.6}
        ...     bad_options = {"threshold": [-0.1, 1.5]}
        ...     monotone_in = {"threshold": (0.2, 0.5, 0.9)}
        ...     equivalent_to = (Equivalence(options={"threshold": 1.0}, other="core/quota", quota=1),)
    """

    kind = "commit rule"
    part = "rule"
    base_class = CommitRule
    surest_first: ClassVar[bool] = True
    ties_go_left: ClassVar[bool] = True
    order_free: ClassVar[bool] = True
    asks_nothing: ClassVar[bool] = True
    monotone_in: ClassVar[Mapping[str, Sequence[object]]] = {}
    equivalent_to: ClassVar[Sequence[Equivalence]] = ()

    def cases(self, quota: int | None = None) -> Iterator[Case]:
        """Calls with distinct confidences, rows with fewer masks than others, and rows with none."""
        for seed in range(CASES):
            yield make_case(seed, quota)

    def select(self, case: Case, rule: CommitRule | None = None) -> Tensor:
        """What the rule selects. -> (B, M) bool"""
        rule = self.make() if rule is None else rule
        asked = case.asked_by(rule)
        return rule.select(asked.proposal, asked.masked, asked.quota)

    def test_only_masks_are_chosen(self) -> None:
        """A selection is a boolean of the slots' shape, true at masked slots only.

        Why: filler stands for a position that another row needs; writing it overwrites a token of this row.

        Mend: combine with ``masked`` at the end, also where every confidence is -inf (suppressed tokens).
        """
        for case in self._with_suppressed():
            selected = self.select(case)
            expect_equal((selected.shape, selected.dtype), (case.masked.shape, torch.bool), "shape and type")
            wrong = (selected & ~case.masked).nonzero().tolist()
            expect(not wrong, f"filler is chosen at (row, slot) {wrong}; choose only where masked is True")

    def test_every_row_moves_on(self) -> None:
        """A rule that sets its own pace commits at least one position in every row that has a mask.

        Why: a threshold that nothing passes makes the loop run in circles; published code hangs when row 0 finishes
        first, or leaves masks (source: ZHZisZZ/dllm fastdllm/dream/sampler.py).

        Mend: always add the surest masked position of each row, also where its confidence is -inf.
        """
        if self.make().follows_quota:
            raise unittest.SkipTest("the rule follows the quota, which may be 0 for a row")
        for case in self._with_suppressed():
            moved = self.select(case).any(1)
            expect_equal(moved, case.masked.any(1), "rows that commit something, and rows with masks")

    def test_the_quota_is_kept(self) -> None:
        """A rule that follows the quota commits exactly that many positions in each row.

        Why: the loop trusts it and does not ask the device whether a block is complete; one too few leaves a mask.

        Mend: take the ``quota`` best of each row, or declare ``follows_quota = False``.
        """
        if not self.make().follows_quota:
            raise unittest.SkipTest("the rule sets its own pace")
        for case in self._with_suppressed():
            expect_equal(self.select(case).sum(1), case.quota, "positions chosen in each row, and the quota")

    def test_a_row_is_the_same_alone(self) -> None:
        """What is chosen in a row depends on nothing but that row; more filler changes nothing.

        Why: thresholds taken over the whole batch, and ranks that count filler, make results depend on the batch.

        Mend: reduce along the slots only, with filler at -inf.
        """
        for case in self.cases():
            selected = self.select(case)
            for row in range(ROWS):
                alone = case.take(slice(row, row + 1), slice(0, int(case.masked[row].sum())))
                got = self.select(alone)[0].tolist()
                expect_equal(got, selected[row, : len(got)].tolist(), f"row {row} alone and in its batch")

    @requires("order_free")
    def test_the_order_of_slots_is_irrelevant(self) -> None:
        """Slots in another order get the same selection in that order.

        Why: an index that was computed before sorting and used after it selects neighbours of the sure positions.

        Mend: scatter what was computed in sorted order back through the order; rules that use places say
        ``order_free = False``.
        """
        for seed, case in enumerate(self.cases()):
            order = torch.randperm(SLOTS, generator=torch.Generator().manual_seed(seed))
            got = self.select(case.take(slice(None), order))
            expect_equal(got, self.select(case)[:, order], f"selection with slots in the order {order.tolist()}")

    def test_nothing_is_random(self) -> None:
        """The same proposals give the same selection, whatever was selected before.

        Why: randomness belongs to the sampler, which keys it by row; a rule with noise or memory of its own makes
        results depend on who ran before.

        Mend: rank by ``proposal.priority``, which carries the noise where the user asks for some.
        """
        rule, results = self.make(), []
        for seed in (1, 2):
            with process_seed(seed):
                state = torch.get_rng_state()
                results.append([self.select(case, rule).tolist() for case in self.cases()])
                expect(torch.equal(torch.get_rng_state(), state), "selecting moves torch's generator; draw nothing")
        expect_equal(results[1], results[0], "selections of the second time and of the first")

    @requires("ties_go_left")
    def test_ties_go_to_the_left(self) -> None:
        """Among equally sure positions the left ones are taken.

        Why: torch.topk promises no order among equals, and devices differ; text is then not repeatable elsewhere.

        Mend: sort with ``stable=True``, descending; for one best use argmax of the first maximum.
        """
        for case in self.cases():
            for value in (0.05, 0.5, 0.95):
                equal = case.with_confidence(torch.full_like(case.proposal.confidence, value))
                selected = self.select(equal)
                first = selected.cumprod(1).bool()
                expect_equal(selected, first, f"selection among equal confidences of {value}, and its left part")

    @requires("surest_first")
    def test_surest_positions_come_first(self) -> None:
        """No position is chosen while a surer masked one of the same row is left out.

        Why: an off-by-one in a sorted prefix, or ascending instead of descending order, commits the worst guesses.

        Mend: sort descending by confidence and commit a prefix.
        """
        for case in self.cases():
            selected = self.select(case)
            sure = case.proposal.confidence
            least = sure.masked_fill(~selected, torch.inf).amin(1)
            left_out = sure.masked_fill(selected | ~case.masked, -torch.inf).amax(1)
            expect(
                bool((least >= left_out).all()),
                f"positions with confidence {least.tolist()} are chosen, surer ones ({left_out.tolist()}) left out",
            )

    def test_the_quota_ranks_by_priority(self) -> None:
        """A rule that follows the quota ranks by ``priority``, not by ``confidence``.

        Why: with ``confidence_temperature`` the two differ; ranking by confidence ignores that option.

        Mend: sort ``proposal.priority``.
        """
        if not self.make().follows_quota:
            raise unittest.SkipTest("the rule sets its own pace")
        for case in self.cases():
            given = case.proposal
            tokens, confidence, priority = given.tokens, given.confidence, given.priority
            other = whole_proposal(tokens, 1 - confidence, priority, case.proposal.places)
            noisy = dataclasses.replace(case, proposal=other)
            expect_equal(self.select(noisy), self.select(case), "selection with other confidences of the same priority")

    def test_inputs_are_not_changed(self) -> None:
        """Tokens, confidence, priority, masks and quota are as they were.

        Why: the loop writes the tokens and reports the confidence after the rule has seen them.

        Mend: use masked_fill and scatter, not masked_fill_ and scatter_, on what you are given; what `remember` made is
        the rule's own.
        """
        rule = self.make()
        for case in self.cases():
            before = _values(case)
            weigh_and_select(rule, case)
            for name, value in _values(case).items():
                expect_equal(value, before[name], f"{name} after selecting")

    def test_needs_are_declared(self) -> None:
        """``needs`` names what a `Proposal` can hold, and a history is made where one is declared, and only there.

        Why: only what is declared is measured; a misspelt need is None at the first step, and an undeclared history is
        never made.

        Mend: take the names from `dllm_core.samplers.statistics.NEEDS`; with ``"history"`` override `remember`, without
        it do not.
        """
        rule = self.make()
        unknown = sorted(set(rule.needs) - set(NEEDS))
        expect(not unknown, f"needs names {unknown}; there are {list(NEEDS)}")
        remembers = type(rule).remember is not CommitRule.remember
        expect_equal("history" in rule.needs, remembers, "history is among the needs, and remember is overridden")

    def test_rows_of_a_batch_are_each_alone(self) -> None:
        """Through all steps of the sampling loop a row of a ragged batch gets what it gets alone.

        Why: what a rule remembers from step to step is where rows mix: a history over the batch, or one that is read at
        the place of another position.

        Mend: keep one row of history for each row of the block, and index it with ``places``.
        """
        for options in ({"block_size": 3}, {"block_size": None}, {"block_size": 3, "temperature": 1.0}):
            sampler = self.sampler(self.make(), **options)
            together = texts(sampler.sample(fresh(PROMPTS)))
            alone = [texts(sampler.sample([list(prompt)]))[0] for prompt in PROMPTS]
            expect_equal(together, alone, f"texts in a batch and alone with {options}")

    def test_every_precision_selects_the_same(self) -> None:
        """float16, bfloat16, float32 and float64 give the same selection for values that all can hold.

        Why: priorities are float64 where noise is added; a constant of another type in a comparison or a where raises
        errors, or rounds thresholds.

        Mend: make constants with the type and device of what they meet (full_like, new_tensor, Python numbers).
        """
        for case in self.cases():
            want = self.select(case)
            for dtype in (torch.float16, torch.bfloat16, torch.float64):
                expect_equal(self.select(case.to(dtype=dtype)), want, f"selection in {dtype} and in float32")

    @requires("asks_nothing")
    def test_the_device_is_asked_nothing(self) -> None:
        """The rule runs on tensors without values: nothing in it waits for the device.

        Why: every ``.item()``, ``bool(tensor)``, nonzero or loop over rows stops the GPU once a step (the published
        samplers do so per row and step).

        Mend: select with where, cumsum, sort and scatter; a rule that cannot says ``asks_nothing = False``.
        """
        rule, case = self.make(), make_case(0, None).to(device="meta")
        try:
            weigh_and_select(rule, case)
            selected = self.select(case, rule)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise AssertionError(f"the rule asks for values, or mixes devices: {reason}; keep to tensors") from error
        expect_equal((selected.device.type, selected.shape), ("meta", case.masked.shape), "device and shape")

    @requires("monotone_in")
    def test_options_are_monotone(self) -> None:
        """Along the declared values of an option no row commits more.

        Why: an inverted comparison reads as a careful setting and decodes recklessly.

        Mend: turn the comparison, or declare the values of ``monotone_in`` from bold to careful.
        """
        for name, values in self.monotone_in.items():
            for case in self.cases():
                counts = [self.select(case, self.make(**{name: value})).sum(1) for value in values]
                falls = all(bool((a >= b).all()) for a, b in itertools.pairwise(counts))
                listed = [count.tolist() for count in counts]
                expect(falls, f"{name} = {list(values)} commits {listed} positions a row; it must never commit more")

    @requires("equivalent_to")
    def test_equivalences_hold(self) -> None:
        """With the declared options another rule selects the same.

        Why: known special cases (threshold 1 is one token a step, ...) are the cheapest proof of a formula.

        Mend: compare the formula at the boundary: strict or not, rank from 0 or from 1.
        """
        for same in self.equivalent_to:
            other = registry.load(self.kind, same.other) if isinstance(same.other, str) else same.other
            rules = self.make(**same.options), from_mapping(other, same.other_options, what=self.kind)
            for case in self.cases(same.quota):
                got, want = (self.select(case, rule) for rule in rules)
                expect_equal(got, want, f"selection with {dict(same.options)} and by {other.__name__}")

    def test_every_block_ends(self) -> None:
        """Inside the sampling loop no mask is left, after at most as many steps as there are masks.

        Why: a rule may be right on each call and still end a block early or late; leftover masks are the field's most
        reported decoding bug (NVlabs/Fast-dLLM issue 54).

        Mend: commit at least one position a step and row, or exactly the quota; declare ``follows_quota`` truthfully.
        """
        rule = self.make()
        for block_size in (1, 3, None):
            for options in ({}, {"steps": 1}, {"confidence": "margin"}, {"temperature": 1.0}):
                sampler = self.sampler(rule, block_size=block_size, **options)
                count = len(steps_of(sampler, PROMPTS))
                words = f"block_size={block_size} and {options}"
                expect(count <= NEW, f"{count} steps for {NEW} masks with {words}; commit at least one a step")
                rows = texts(sampler.sample(fresh(PROMPTS)))
                expect(not any(MASK in row for row in rows), f"masks are left with {words}: {rows}; commit the rest")

    def _with_suppressed(self) -> Iterator[Case]:
        """The cases as they are, and with all confidences of the first two rows suppressed."""
        for case in self.cases():
            yield case
            confidence = case.proposal.confidence.clone()
            confidence[:2] = -torch.inf
            yield case.with_confidence(confidence)


def make_case(seed: int, quota: int | None) -> Case:
    """A call with distinct confidences that every precision can hold; the last row may have no mask."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(255, generator=generator)[:SLOTS] for _ in range(ROWS)])  # (B, M)
    confidence = (order + 1) / 256
    masks = torch.tensor([SLOTS, *(int(torch.randint(1, SLOTS, (), generator=generator)) for _ in range(ROWS - 2)), 0])
    masked = torch.arange(SLOTS) < masks[:, None]
    share = torch.rand(ROWS, generator=generator)
    counts = (share * masks).ceil().long() if quota is None else masks.clamp(max=quota)
    tokens = torch.randint(0, 3, (ROWS, SLOTS), generator=generator)
    places = torch.stack([torch.randperm(PLACES, generator=generator)[:SLOTS].sort().values for _ in range(ROWS)])
    places = places.where(masked, PLACES)
    return Case(whole_proposal(tokens, confidence, confidence.clone(), places), masked, counts)


def weigh_and_select(rule: CommitRule, case: Case) -> None:
    """All that the loop calls in a step, with the log probabilities in the place of logits."""
    asked = case.asked_by(rule)
    rule.weigh(case.proposal.log_probs, case.proposal.places, asked.proposal.history)
    rule.select(asked.proposal, asked.masked, asked.quota)


def whole_proposal(tokens: Tensor, confidence: Tensor, priority: Tensor, places: Tensor) -> Proposal:
    """A proposal (B, M) with all that a rule may ask for: what a token's confidence leaves is shared by all others."""
    chosen = confidence.float().clamp(1 / WORDS, 1 - 1e-6)[..., None]  # suppressed ones: nothing is known
    rest = ((1 - chosen) / (WORDS - 1)).expand(*tokens.shape, WORDS)
    probabilities = rest.scatter(-1, tokens[..., None], chosen)  # (B, M, V)
    entropy = torch.special.entr(probabilities).sum(-1).masked_fill(confidence == -torch.inf, torch.inf)
    best_two = probabilities.topk(2, -1).values
    return Proposal(tokens, confidence, priority, entropy, best_two, probabilities.log(), places)


def _values(case: Case) -> dict[str, list]:
    parts = {field.name: getattr(case.proposal, field.name) for field in dataclasses.fields(Proposal)}
    parts |= {"masked": case.masked, "quota": case.quota}
    return {name: part.tolist() for name, part in parts.items() if isinstance(part, Tensor)}
