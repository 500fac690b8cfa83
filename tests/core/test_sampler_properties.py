"""What holds for every run of the sampler, whatever its options; and broken samplers, each caught by one of these.

A check is a plain function of a `Run`. Hypothesis feeds it runs of every kind; the mutants feed it a few fixed ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dllm_core as dllm
from dllm_core.conformance.toy import ExactModel, ToyAdapter, random_joint
from dllm_core.models import head as head_module
from dllm_core.noise.counter import key_from
from dllm_core.samplers import base, planning, proposals, weighing
from dllm_core.samplers.canvas import Canvas
from dllm_core.samplers.commit import Quota
from dllm_core.samplers.planning import steps_per_block
from dllm_core.samplers.quota import quota_counts

EOS, MASK, VOCAB, LENGTH = 3, 4, 4, 6
Row = tuple[int, ...]


@cache
def denoiser(shifted: bool = False, loves_masks: bool = False) -> dllm.Denoiser:
    model = ExactModel(random_joint(VOCAB, LENGTH, seed=11), shifted=shifted)
    if loves_masks:
        model.head.weight.data[MASK, MASK] = -1  # the mask token then scores +60, all others below 0
    return dllm.Denoiser(
        model, ToyAdapter(), special_ids={"mask": MASK, "eos": EOS, "pad": 0}, logits_are_shifted=shifted
    )


@dataclass(frozen=True)
class Run:
    """Prompts, or canvases to infill, and the options to do it with."""

    rows: tuple[Row, ...]
    options: dict
    infill: bool = False
    shifted: bool = False
    loves_masks: bool = False

    @property
    def sampler(self) -> dllm.MDLMSampler:
        length = {} if self.infill else {"max_length": LENGTH}
        return dllm.MDLMSampler(denoiser(self.shifted, self.loves_masks), **(length | self.options))

    def start(self):
        return (self.sampler.start_infill if self.infill else self.sampler.start)([list(row) for row in self.rows])

    def out(self) -> list[Row]:
        """The finished rows."""
        rows = [list(row) for row in self.rows]
        out = (self.sampler.infill if self.infill else self.sampler.sample)(rows)
        return [tuple(row[:n]) for row, n in zip(out.sequences.tolist(), out.lengths.tolist(), strict=True)]

    def steps(self):
        """(canvas before, step) for every step."""
        state, sampler = self.start(), self.sampler
        while not state.finished:
            before = state.input_ids.clone()
            yield before, sampler.step(state)


def check_given_tokens_stay_and_no_mask_is_left(run: Run) -> None:
    for before, after in zip(run.rows, run.out(), strict=True):
        if not run.infill:
            before = (*before, *[MASK] * (run.options.get("max_new_tokens", LENGTH - len(before))))
        assert len(before) == len(after)
        assert MASK not in after
        assert all(new == old for old, new in zip(before, after, strict=True) if old != MASK)
        written = {new for old, new in zip(before, after, strict=True) if old == MASK}
        filled = {EOS} if run.options.get("stop_at_eos") and not run.infill else set()
        assert not (written - filled) & set(run.options.get("suppress_tokens", ()))


def check_a_row_alone_is_the_row_in_the_batch(run: Run) -> None:
    together = run.out()
    for row, want in zip(run.rows, together, strict=True):
        assert replace(run, rows=(row,)).out() == [want]
    assert replace(run, rows=run.rows[::-1]).out() == together[::-1]


def check_every_step_commits_its_quota_inside_its_block(run: Run) -> None:
    state, options = run.start(), run.sampler.options
    canvas: Canvas = state.canvas
    left = {}
    done = state.done.clone()
    for number, (before, step) in enumerate(run.steps()):
        assert step.index == number
        changed = (step.input_ids != before) & ~step.committed
        assert not (changed & ~step.done[:, None]).any()  # else only the filler behind an end of sequence
        assert (step.input_ids[changed] == EOS).all()
        assert (before[step.committed] == MASK).all()
        assert (step.input_ids[step.committed] != MASK).all()
        assert not step.committed[done].any()
        for row in range(len(run.rows)):
            start, stop = canvas.span(row, step.block)
            if (row, step.block) not in left:
                budget = steps_per_block(options, canvas, row)
                how = options.quota, options.schedule, options.time_epsilon
                left[row, step.block] = list(quota_counts(canvas.masks(row, step.block), budget, *how))
            here = step.committed[row].nonzero().flatten().tolist()
            assert all(start <= position < stop for position in here)
            if not done[row] and not options.stochastic_quota:
                assert len(here) == (left[row, step.block].pop(0) if left[row, step.block] else 0)
        assert (step.done | ~done).all()
        done = step.done
    assert done.all()


def check_each_mask_is_committed_once_and_the_stream_ends_in_the_result(run: Run) -> None:
    steps = list(run.steps())
    total = sum(step.committed.long() for _, step in steps)
    assert int(total.max()) <= 1
    start = run.start()
    real = torch.arange(start.input_ids.shape[1]) < torch.tensor(start.canvas.lengths)[:, None]
    if run.infill or not run.sampler.options.stop_at_eos:
        assert torch.equal(total.bool(), (start.input_ids == MASK) & real)
    last = steps[-1][1].input_ids.tolist()
    assert [tuple(row[:n]) for row, n in zip(last, start.canvas.lengths, strict=True)] == run.out()
    assert [step.done.all().item() for _, step in steps] == [False] * (len(steps) - 1) + [True]


def check_the_surest_proposals_are_committed(run: Run) -> None:
    """Greedy runs, recomputed from whole-canvas logits: the right tokens, the surest positions, guided or not."""
    model, options = denoiser(run.shifted, run.loves_masks), run.sampler.options
    canvas = run.start().canvas
    real = torch.arange(max(canvas.lengths)) < torch.tensor(canvas.lengths)[:, None]
    given = (run.start().input_ids != MASK) & real
    for before, step in run.steps():
        with torch.no_grad():
            logits = model.logits(before, real)
            if options.guidance_scale:
                unconditional = model.logits(before.masked_fill(given, MASK), real)
                logits = unconditional + (options.guidance_scale + 1) * (logits - unconditional)
        best = logits.index_fill(-1, torch.tensor(MASK), -torch.inf).argmax(-1)
        sure = logits.softmax(-1).gather(-1, best[..., None])[..., 0]
        assert torch.equal(step.input_ids[step.committed], best[step.committed])
        for row in range(len(run.rows)):
            start, stop = canvas.span(row, step.block)
            opened = [i for i in range(start, stop) if before[row, i] == MASK]
            chosen = [i for i in opened if step.committed[row, i]]
            rest = [i for i in opened if i not in chosen]
            if chosen and rest:
                assert sure[row, chosen].min() >= sure[row, rest].max() - 1e-6
            torch.testing.assert_close(step.confidence[row, chosen], sure[row, chosen].float())


def check_an_end_of_sequence_stops_a_row_but_not_its_text(run: Run) -> None:
    def texts(stop: bool) -> list[Row]:
        rows = replace(run, options=run.options | {"stop_at_eos": stop}).out()
        completions = [row[len(prompt) :] for row, prompt in zip(rows, run.rows, strict=True)]
        return [row[: (*row, EOS).index(EOS)] for row in completions]

    assert texts(True) == texts(False)


def check_a_seed_repeats_a_run_and_repeated_prompts_differ(run: Run) -> None:
    assert run.out() == run.out()
    many = replace(run, rows=run.rows[:1] * 12, options=run.options | {"temperature": 1.0}).out()
    assert len(set(many)) > 1
    assert many[:1] == replace(run, rows=run.rows[:1], options=run.options | {"temperature": 1.0}).out()
    other = replace(run, rows=run.rows[:1] * 12, options=run.options | {"temperature": 1.0, "seed": 99}).out()
    assert other != many


def check_a_shifted_model_writes_the_same(run: Run) -> None:
    assert replace(run, shifted=True).out() == replace(run, shifted=False).out()


@st.composite
def sampler_options(draw, **fixed):
    """Options of every kind that go together."""

    def maybe(name: str, *values: object) -> dict:
        value = draw(st.sampled_from([None, *values]))
        return {} if value is None else {name: value}

    chosen = maybe("temperature", 1.0, 0.4) | maybe("confidence", "margin", "entropy", "random")
    chosen |= maybe("confidence_temperature", 0.5) | maybe("guidance_scale", 1.5) | maybe("guidance_keep_tokens", (1,))
    chosen |= maybe("suppress_tokens", (0,), (1, EOS)) | maybe("suppress_confidence_tokens", (EOS,), (2, 1))
    chosen |= maybe("confidence_distribution", "sampling")
    chosen |= maybe("top_k", 2) | maybe("top_p", 0.7) | maybe("schedule", "cosine")
    chosen |= draw(st.sampled_from([{}, {"quota": "even"}, {"quota": "floor"}, {"stochastic_quota": True}]))
    chosen |= {} if chosen.get("quota") == "even" else maybe("time_epsilon", 0.1)
    chosen |= {"block_size": draw(st.sampled_from([None, 1, 2, 3, 32]))}
    chosen |= {"seed": draw(st.integers(0, 9)), "stop_at_eos": draw(st.booleans())}
    return chosen | maybe("steps", 1, 2, 4, 9) | fixed


tokens = st.integers(0, VOCAB - 1)
prompts = st.lists(st.lists(tokens, min_size=1, max_size=4).map(tuple), min_size=1, max_size=4, unique=True)
canvases = st.lists(
    st.lists(st.one_of(tokens, st.just(MASK)), min_size=1, max_size=LENGTH).map(tuple).filter(lambda row: MASK in row),
    min_size=1,
    max_size=4,
    unique=True,
)


@st.composite
def completions(draw, **fixed):
    chosen = draw(sampler_options(**fixed))
    if draw(st.booleans()):
        chosen["max_new_tokens"], chosen["max_length"] = 2, None
    return Run(tuple(draw(prompts)), chosen, shifted=draw(st.booleans()), loves_masks=draw(st.booleans()))


@st.composite
def infillings(draw, **fixed):
    chosen = draw(sampler_options(**fixed))
    if "steps" in chosen:  # a budget of the whole canvas is split over the longest row's blocks, as published
        chosen["steps_per_block"] = chosen.pop("steps")
    return Run(tuple(draw(canvases)), chosen, True, draw(st.booleans()), draw(st.booleans()))


def quick(examples: int = 25):
    return settings(max_examples=examples, deadline=None)


@quick(60)
@given(st.one_of(completions(), infillings()))
def test_given_tokens_stay_and_no_mask_is_left(run):
    check_given_tokens_stay_and_no_mask_is_left(run)


@quick(60)
@given(st.one_of(completions(), infillings()))
def test_a_row_alone_is_the_row_in_the_batch(run):
    check_a_row_alone_is_the_row_in_the_batch(run)


@quick(40)
@given(st.one_of(completions(), infillings()))
def test_every_step_commits_its_quota_inside_its_block(run):
    check_every_step_commits_its_quota_inside_its_block(run)


@quick(40)
@given(st.one_of(completions(), infillings()))
def test_each_mask_is_committed_once_and_the_stream_ends_in_the_result(run):
    check_each_mask_is_committed_once_and_the_stream_ends_in_the_result(run)


@quick()
@given(
    prompts,
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([{}, {"steps": 2}, {"steps": 9}]),
    st.sampled_from([0.0, 1.5]),
    st.booleans(),
)
def test_the_surest_proposals_are_committed(rows, block_size, steps, guidance_scale, shifted):
    options = {"block_size": block_size, "guidance_scale": guidance_scale, "stop_at_eos": False} | steps
    check_the_surest_proposals_are_committed(Run(tuple(rows), options, shifted=shifted))


@quick()
@given(completions())
def test_an_end_of_sequence_stops_a_row_but_not_its_text(run):
    check_an_end_of_sequence_stops_a_row_but_not_its_text(run)


@quick(10)
@given(prompts, st.sampled_from(["probability", "random"]), st.sampled_from([None, 2]))
def test_a_seed_repeats_a_run_and_repeated_prompts_differ(rows, confidence, block_size):
    run = Run(
        tuple(rows), {"confidence": confidence, "block_size": block_size, "max_new_tokens": 2, "max_length": None}
    )
    check_a_seed_repeats_a_run_and_repeated_prompts_differ(run)


@quick()
@given(completions())
def test_a_shifted_model_writes_the_same(run):
    check_a_shifted_model_writes_the_same(run)


FIXED = (
    Run(((0,), (2, 1, 0), (1, 3)), {"block_size": 2, "temperature": 1.0}),
    Run(((1, 2), (0,)), {"block_size": 3, "confidence": "random", "steps": 2, "suppress_tokens": (1, 2)}),
    Run(((EOS, 0), (2, EOS, 1)), {"block_size": 2, "guidance_scale": 1.5}, loves_masks=True),
    Run(((3, 3), (1, 3, 0)), {"block_size": None, "steps": 2, "schedule": "cosine"}),
    Run(((MASK, 1, MASK, MASK), (0, MASK, 2, 2, 1, MASK)), {"block_size": 2}, infill=True),
    Run(((MASK, MASK, 0, 1, 0, 2), (1, MASK)), {"block_size": None, "steps_per_block": 1}, infill=True),
)
PLAIN = tuple(
    Run(run.rows, {"block_size": 2, "stop_at_eos": False} | extra)
    for run in FIXED[:4]
    for extra in ({}, {"guidance_scale": 1.5}, {"steps": 4})
)


row_keys = planning.row_keys


def one_row_end_ends_all(end_rows):
    return lambda state, ended, denoiser: end_rows(state, [any(ended)] * len(ended), denoiser)


def given_tokens_count_as_masks(open_positions):
    def mutant(ids, block, count, mask_token_id):
        slots, _ = open_positions(ids, block, block.positions.shape[1], mask_token_id)
        return slots, torch.ones_like(slots, dtype=torch.bool)

    return mutant


STAY, ALONE = check_given_tokens_stay_and_no_mask_is_left, check_a_row_alone_is_the_row_in_the_batch
QUOTA, ONCE = (
    check_every_step_commits_its_quota_inside_its_block,
    check_each_mask_is_committed_once_and_the_stream_ends_in_the_result,
)
SUREST, ENDS = check_the_surest_proposals_are_committed, check_an_end_of_sequence_stops_a_row_but_not_its_text
SEED, SHIFT = check_a_seed_repeats_a_run_and_repeated_prompts_differ, check_a_shifted_model_writes_the_same
# What is broken, where, how (from the original function to the mutant), the check that sees it, on which runs.
MUTANTS = {
    "the first step is forgotten": (planning, "quota_counts", lambda f: lambda *a: f(*a)[1:] or (0,), STAY, FIXED),
    "one token too many a step": (Quota, "select", lambda f: lambda s, p, m, q: f(s, p, m, q + 1), QUOTA, FIXED),
    "the quotas in reverse": (
        planning,
        "quota_counts",
        lambda f: lambda *a: f(*a)[::-1] if len(set(f(*a))) > 1 else f(*a),
        QUOTA,
        FIXED,
    ),
    "confidence of another token": (
        proposals,
        "_confidence",
        lambda f: lambda logits, tokens, *a: f(logits, (tokens + 1) % VOCAB, *a),
        SUREST,
        PLAIN,
    ),
    "the least sure first": (proposals, "_priority", lambda f: lambda *a: -f(*a), SUREST, PLAIN),
    "the second best token": (
        proposals,
        "_choose",
        lambda f: lambda logits, *a: logits[..., :MASK].argsort(-1)[..., -2],
        SUREST,
        PLAIN,
    ),
    "guidance turned round": (base, "guided", lambda f: lambda c, u, s: f(u, c, s), SUREST, PLAIN),
    "no padding mask": (planning, "row_mask", lambda f: lambda *a: None, ALONE, FIXED),
    "noise keyed by row number": (
        planning,
        "row_keys",
        lambda f: lambda rows, seed: [key_from(seed, i) for i in range(len(rows))],
        ALONE,
        FIXED,
    ),
    "equal prompts have equal noise": (
        planning,
        "row_keys",
        lambda f: lambda rows, seed: [row_keys([row], seed)[0] for row in rows],
        SEED,
        FIXED[:2],
    ),
    "the longest row's steps for all": (
        planning,
        "steps_per_block",
        lambda f: lambda options, canvas, row: canvas.block_size if options.steps is None else f(options, canvas, row),
        ALONE,
        (Run(((0,), (2, 1, 0), (1, 3, 1)), {"block_size": None, "schedule": "cosine", "temperature": 1.0}),),
    ),
    "filler counts as the surest": (
        weighing,
        "without_borrowed_lead",
        lambda f: lambda proposal, slots, masked: f(proposal, slots, torch.ones_like(masked)),
        ALONE,
        (Run(((MASK, MASK, 0, 3), (MASK,) * 6), {"block_size": None}, infill=True, shifted=True),),
    ),
    "the mask token may be chosen": (proposals, "_choose", lambda f: lambda x, *a: x.argmax(-1), STAY, FIXED),
    "suppressed tokens are chosen": (proposals, "_forbid", lambda f: lambda *a: None, STAY, FIXED),
    "the block grid starts one early": (
        Canvas,
        "span",
        lambda f: lambda *a: tuple(max(position - 1, 0) for position in f(*a)),
        STAY,
        FIXED,
    ),
    "given tokens are rewritten": (base, "open_positions", given_tokens_count_as_masks, STAY, FIXED),
    "tokens land one to the right": (base, "spread", lambda f: lambda *a: f(*a).roll(1, 1), ONCE, FIXED),
    "one row's end ends all rows": (planning, "end_rows", one_row_end_ends_all, ALONE, FIXED),
    "the first end is overlooked": (planning, "end_rows", one_row_end_ends_all, ENDS, FIXED[:4]),
    "the shift is done twice": (
        head_module,
        "_position_before",
        lambda f: lambda *a: (f(*a) - 1).clamp(min=0),
        SHIFT,
        FIXED[:4],
    ),
}


@pytest.mark.parametrize(("owner", "name", "mutate", "check", "runs"), MUTANTS.values(), ids=MUTANTS)
def test_mutants_are_caught(owner, name, mutate, check, runs, monkeypatch):
    for run in runs:
        check(run)  # the sampler as it is
    monkeypatch.setattr(owner, name, mutate(getattr(owner, name)))
    with pytest.raises(AssertionError):  # noqa: PT012 (which of the runs sees it does not matter)
        for run in runs:
            check(run)
