"""What a run of edits may change, what it says of it, and what it costs."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from dllm_editflow.exact_toy import exact_editor
from dllm_editflow.models.heads import EditStates
from dllm_editflow.models.options import HeadOptions
from dllm_editflow.operations import replay, undo
from dllm_editflow.sampler import EditFlowSampler
from dllm_editflow.state import open_gaps
from dllm_editflow.toy import EditToyAdapter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dllm_core.conformance.counting import counted
from dllm_core.conformance.toy import random_joint
from dllm_core.errors import OptionError, PromptError
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.head import PIECE_ELEMENTS

VOCAB, MASK, PAD, BOS, END = 12, 11, 10, 9, 8
CONTEXT = 24


class Editor(nn.Module):
    """Rates and scores that depend on a token and its left neighbour; with ``busy=0`` it never edits."""

    def __init__(self, *, busy: float = 1.0, timed: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.edit_options = HeadOptions(edit_time_embedding=timed)
        generator = torch.Generator().manual_seed(seed)
        self.rates = busy * torch.rand(VOCAB, VOCAB, 3, generator=generator) ** 2 / 2
        self.embedding, self.head = nn.Embedding(VOCAB, VOCAB), nn.Linear(VOCAB, VOCAB, bias=False)
        self.embedding.weight.data = 2 * torch.randn(VOCAB, VOCAB, generator=generator)
        self.head.weight.data = torch.eye(VOCAB)
        self.config = _Config()
        self.times: list[float] = []

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids, attention_mask=None, position_ids=None, *, time, edits, edits_are_shifted=None):
        self.times += time.tolist()
        before = torch.nn.functional.pad(input_ids[:, :-1], (1, 0), value=BOS)
        hidden = self.embedding(input_ids) + 0.5 * self.embedding(before)
        return edits(EditStates(self.rates[input_ids, before], hidden, hidden, self.head, self.head))


class _Config:
    max_position_embeddings = CONTEXT


def editor(**traits: object) -> Denoiser:
    return Denoiser(Editor(**traits), EditToyAdapter(), special_ids={"mask": MASK, "pad": PAD, "bos": BOS, "eos": END})


def run(sampler: EditFlowSampler, rows, **flags):
    state = sampler.start_edit(rows, **flags)
    steps = []
    while not state.finished:
        steps.append(sampler.step(state))
    return state, steps, sampler.finish(state)


def rows_of(state) -> list[list[int]]:
    return [ids[:width] for ids, width in zip(state.input_ids.tolist(), state.lengths.tolist(), strict=True)]


MODES = [
    {"mode": "tau", "steps": 12},
    {"mode": "event", "until": 0.9},
    {"mode": "threshold", "threshold": 0.2, "max_passes": 30},
    {"mode": "one", "threshold": 0.2, "max_passes": 30},
]
modes = pytest.mark.parametrize("mode", MODES, ids=[mode["mode"] for mode in MODES])
DRAFTS = [[BOS, 1, 2, 3, 4], [BOS, 5], [BOS, 7, 6, 5, 4, 3, 2, 1, 0]]


@st.composite
def drafts(draw: st.DrawFn) -> tuple[list[list[int]], list[list[bool]]]:
    count = draw(st.integers(1, 3))
    rows = [[BOS, *draw(st.lists(st.integers(0, 7), max_size=7))] for _ in range(count)]
    return rows, [draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))) for row in rows]


@settings(max_examples=25, deadline=None)
@given(drafts(), st.sampled_from(MODES), st.integers(0, 3))
def test_locked_tokens_are_the_same_in_every_frame(case, mode, seed):
    """They stay, in order, with their neighbours; the log replays and undoes; provenance rises."""
    rows, locked = case
    sampler = EditFlowSampler(editor(), temperature=1.0, seed=seed, **mode)
    state = sampler.start_edit(rows, locked=locked)
    while not state.finished:
        sampler.step(state)
        for number, (row, marks) in enumerate(zip(rows, locked, strict=True)):
            now, length = state.input_ids[number].tolist(), state.widths[number]
            sources = state.source[number, :length].tolist()
            kept = [source for source in sources if source >= 0]
            assert kept == sorted(set(kept))
            marks = [True, *marks[1:]]
            for place, mark in enumerate(marks):
                if mark:
                    assert now[sources.index(place)] == row[place]
            for place, (here, behind) in enumerate(itertools.pairwise(marks)):
                if here and behind:  # nothing comes between two locked tokens
                    assert sources.index(place + 1) == sources.index(place) + 1
            assert now[0] == row[0]
            assert sources[0] == 0
    own = zip(rows, state.operations, rows_of(state), state.source.tolist(), strict=True)
    for row, log, now, sources in own:
        assert replay(log, row) == now
        assert undo(log, now) == row
        substituted = {operation.source for operation in log if operation.kind == "substitute"}
        for source, token in zip(sources, now, strict=False):
            assert source < 0 or source in substituted or token == row[source]


@modes
def test_a_model_that_sees_no_error_changes_nothing(mode):
    state, steps, output = run(EditFlowSampler(editor(busy=0.0), **mode), DRAFTS)
    assert rows_of(state) == DRAFTS
    assert state.made == [0, 0, 0]
    assert output.stats.forward_passes == len(steps) == 1
    assert output.stats.logit_rows == 0


@modes
@pytest.mark.parametrize("timed", [False, True])
def test_a_batch_gives_each_row_what_it_gets_alone(mode, timed):
    if timed and mode["mode"] == "event":
        return
    sampler = EditFlowSampler(editor(timed=timed), temperature=1.0, seed=3, **mode)
    together, _, _ = run(sampler, DRAFTS)
    for number, row in enumerate(DRAFTS):
        alone, _, _ = run(sampler, [row])
        assert rows_of(alone)[0] == rows_of(together)[number]
        assert alone.operations[0] == together.operations[number]
    again, _, _ = run(sampler, DRAFTS)
    assert again.operations == together.operations
    other, _, _ = run(EditFlowSampler(editor(timed=timed), temperature=1.0, seed=4, **mode), DRAFTS)
    assert mode["mode"] in ("threshold", "one") or other.operations != together.operations


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.5},
        {"max_edits": 2},
        {"max_churn": 1.2},
        {"max_length": 9},
        {"top_p": 0.6},
        {"top_k": 2, "strength": 0.4},
        {"steps": 3},
    ],
    ids=str,
)
def test_limits_guidance_and_long_steps_are_each_rows_own(options):
    sampler = EditFlowSampler(editor(busy=2.0, timed=True), temperature=1.0, seed=3, **options)
    together, _, _ = run(sampler, DRAFTS)
    assert [run(sampler, [row])[0].operations[0] for row in DRAFTS] == together.operations
    assert all(together.operations)


@pytest.mark.parametrize("source", ["masks", "empty"])
def test_corrections_are_each_rows_own(source):
    options = {"source": source, "max_new_tokens": 5, "correction": (10.0, 0.5, 0.5), "steps": 12}
    sampler = EditFlowSampler(editor(busy=2.0, timed=True), temperature=1.0, seed=3, **options)

    def logs(prompts):
        state = sampler.start(prompts)
        while not state.finished:
            sampler.step(state)
        return state.operations

    prompts = [[BOS, 1], [BOS, 2, 3], [BOS]]
    together = logs(prompts)
    assert [logs([prompt])[0] for prompt in prompts] == together
    taken_back = {op.kind if source == "empty" else op.new for log in together for op in log}
    assert ("delete" if source == "empty" else MASK) in taken_back


def test_the_grid_even_in_kappa_does_not_depend_on_kappa():
    """With rates that no time changes the edits are the same; only the times that the model is told differ."""
    logs, times = [], []
    for kappa in ("linear", "cubic", "cosine", "published"):
        denoiser = editor(timed=True)
        state, _, _ = run(EditFlowSampler(denoiser, steps=10, kappa=kappa, temperature=1.0), DRAFTS)
        logs.append(state.operations)
        times.append(denoiser.model.times)
    assert logs[0] == logs[1] == logs[2] == logs[3]
    assert any(logs[0])
    assert times[0] != times[1]


def test_skipping_quiet_steps_changes_nothing():
    """Where the model knows no time, rows go right to their next edit: the same edits from fewer passes."""
    slow, steps, one = run(EditFlowSampler(editor(busy=0.1, timed=True), steps=200, temperature=1.0), DRAFTS)
    fast, _, other = run(EditFlowSampler(editor(busy=0.1), steps=200, temperature=1.0), DRAFTS)
    plain = [[(op.kind, op.position, op.old, op.new, op.time) for op in log] for log in slow.operations]
    assert plain == [[(op.kind, op.position, op.old, op.new, op.time) for op in log] for log in fast.operations]
    assert one.stats.forward_passes == len(steps) == 200
    events = max(len({op.step for op in log}) for log in fast.operations)
    assert 0 < other.stats.forward_passes <= events + 1


@modes
def test_lengths_stay_in_bounds_and_special_tokens_are_never_written(mode):
    sampler = EditFlowSampler(editor(busy=3.0), temperature=1.0, max_length=10, suppress_tokens=[4], **mode)
    state = sampler.start_edit(DRAFTS)
    while not state.finished:
        sampler.step(state)
        assert all(1 <= width <= 10 for width in state.widths)
    written = {op.new for log in state.operations for op in log}
    assert written
    assert not written & {MASK, PAD, BOS, END, 4}
    assert all(op.old != op.new for log in state.operations for op in log)


@modes
def test_budgets_bound_what_is_done(mode):
    free, _, _ = run(EditFlowSampler(editor(), temperature=1.0, **mode), DRAFTS)
    assert max(free.made) > 2
    bound, _, _ = run(EditFlowSampler(editor(), temperature=1.0, max_edits=2, **mode), DRAFTS)
    assert max(bound.made) == 2
    nothing, steps, _ = run(EditFlowSampler(editor(), max_edits=0, **mode), DRAFTS)
    assert rows_of(nothing) == DRAFTS
    assert not steps
    calm, _, _ = run(EditFlowSampler(editor(), temperature=1.0, max_churn=1.0, **mode), DRAFTS)
    assert all(a <= b for a, b in zip(calm.made, free.made, strict=True))


def test_steps_say_what_was_written():
    sampler = EditFlowSampler(editor(), temperature=1.0, steps=8)
    state = sampler.start_edit(DRAFTS)
    while not state.finished:
        before = [len(log) for log in state.operations]
        step = sampler.step(state)
        for row, count in enumerate(before):
            written = [op.new for op in state.operations[row][count:] if op.new is not None]
            assert step.input_ids[row][step.committed[row]].tolist() == written
            assert not step.confidence[row][step.committed[row]].isnan().any()
    assert any(state.made)


def test_how_sure_an_edit_is_is_its_rate_times_its_tokens_share():
    denoiser, draft = editor(), [BOS, 1, 2, 3, 4]
    state, _, _ = run(EditFlowSampler(denoiser, mode="threshold", threshold=0.05, max_passes=1), [draft])
    assert {op.kind for op in state.operations[0]} == {"substitute", "delete", "insert"}
    for op in state.operations[0]:
        own, before = draft[op.position], draft[max(op.position - 1, 0)]
        logits = denoiser.model.embedding.weight[own] + 0.5 * denoiser.model.embedding.weight[before]
        logits = logits.detach().clone()
        logits[[MASK, PAD, BOS, END, *([own] if op.kind == "substitute" else [])]] = -torch.inf
        share = 1.0 if op.kind == "delete" else logits.softmax(-1).max().item()
        rate = denoiser.model.rates[own, before, ("substitute", "delete", "insert").index(op.kind)].item()
        assert op.probability == pytest.approx(rate * share, rel=1e-4)


def test_counts_are_those_of_the_model():
    for options in ({}, {"guidance_scale": 1.0}, {"mode": "one", "threshold": 0.2, "max_passes": 9}):
        denoiser = editor()
        with counted(denoiser) as counts:
            _, _, output = run(EditFlowSampler(denoiser, temperature=1.0, **options), DRAFTS)
        stats = output.stats
        assert stats.forward_passes == counts.forward_passes
        assert stats.positions_processed == counts.positions
        assert stats.logit_rows == counts.logit_rows > 0
        assert stats.host_syncs == counts.host_syncs


def test_guidance_is_the_naive_rate_of_the_paper():
    """Rates r_c^(1+w) r_u^-w; the other canvas has the mask in place of what is locked, but for the first token."""
    draft, locked = [BOS, 1, 2, 3, 4], [True, True, True, False, False]
    plain, guided = (
        EditFlowSampler(editor(), guidance_scale=scale).suspicion([draft], [locked])[0] for scale in (0.0, 1.5)
    )
    bare = editor().model.rates[[BOS, MASK, MASK, 3, 4], [BOS, BOS, MASK, MASK, 3]].double()
    torch.testing.assert_close(guided, plain**2.5 * bare**-1.5, rtol=1e-4, atol=1e-7)
    assert not torch.equal(guided, plain)
    free = [True, False, False, False, False]  # nothing is hidden but the first, which stays
    plain, guided = (
        EditFlowSampler(editor(), guidance_scale=scale).suspicion([draft], [free])[0] for scale in (0.0, 1.5)
    )
    torch.testing.assert_close(guided, plain, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_no_more_rows_meet_the_vocabulary_at_once_than_fit_a_piece(monkeypatch, scale):
    """Whatever fires; and the pieces choose as the whole does."""
    options = {"temperature": 1.0, "steps": 4, "guidance_scale": scale}
    whole, *_ = run(EditFlowSampler(editor(), **options), DRAFTS)
    monkeypatch.setitem(PIECE_ELEMENTS, "cpu", 2 * VOCAB)
    denoiser, seen = editor(), []
    denoiser.model.head.register_forward_hook(lambda _, inputs, logits: seen.append(len(logits)))
    pieces, *_ = run(EditFlowSampler(denoiser, **options), DRAFTS)
    assert max(seen) == 2
    assert sum(seen) == pieces.stats.logit_rows > 8
    assert pieces.operations == whole.operations


def test_suspicion_is_one_pass_over_what_may_change():
    denoiser = editor()
    locked = [[True, True, False, False, True], [True, False]]
    with counted(denoiser) as counts:
        rates = EditFlowSampler(denoiser).suspicion(DRAFTS[:2], locked)
    assert (counts.forward_passes, counts.logit_rows) == (1, 0)
    assert (rates[0, :, 0] > 0).tolist() == [False, False, True, True, False]
    assert (rates[0, :, 2] > 0).tolist() == [False, True, True, True, False] == open_gaps(locked[0])
    assert not rates[1, 2:].any()


def test_strength_starts_late():
    denoiser = editor(timed=True)
    run(EditFlowSampler(denoiser, steps=4, strength=0.25, kappa="linear"), DRAFTS[:1])
    assert denoiser.model.times == pytest.approx([0.75, 0.8125, 0.875, 0.9375])


def test_generation_from_nothing_keeps_the_prompt_and_its_room():
    sampler = EditFlowSampler(editor(busy=2.0), source="empty", max_new_tokens=6, temperature=1.0, steps=30)
    output = sampler.sample([[BOS, 1], [BOS, 2, 3]])
    rows = [row[:length] for row, length in zip(output.sequences.tolist(), output.lengths.tolist(), strict=True)]
    assert [row[:size] for row, size in zip(rows, (2, 3), strict=True)] == [[BOS, 1], [BOS, 2, 3]]
    assert all(len(row) <= size + 6 for row, size in zip(rows, (2, 3), strict=True))
    assert any(len(row) > size for row, size in zip(rows, (2, 3), strict=True))


def test_infilling_replaces_masks_by_any_number_of_tokens():
    sampler = EditFlowSampler(editor(), temperature=1.0, steps=16)
    output = sampler.infill([[BOS, 1, MASK, MASK, 2, 3, MASK], [MASK, 4]])
    rows = [row[:length] for row, length in zip(output.sequences.tolist(), output.lengths.tolist(), strict=True)]
    assert not any(MASK in row for row in rows)
    rest = iter(rows[0])
    assert all(token in rest for token in (BOS, 1, 2, 3))
    assert (2, 3) in itertools.pairwise(rows[0])
    assert rows[1][-1] == 4


def test_a_mask_leaves_however_low_its_rates_and_the_first_token_never_goes():
    denoiser = editor(busy=0.0)
    denoiser.model.rates[MASK] = torch.tensor([0.0, 0.1, 0.0])
    output = EditFlowSampler(denoiser, steps=4).infill([[MASK, 4], [BOS, MASK, MASK, 4]])
    rows = [row[:length] for row, length in zip(output.sequences.tolist(), output.lengths.tolist(), strict=True)]
    assert rows[1] == [BOS, 4]
    assert len(rows[0]) == 2  # substituted: behind what would the next be inserted?
    assert rows[0][0] != MASK
    assert rows[0][1] == 4


def test_a_run_in_circles_ends():
    """Two tokens that are each other's correction: the text that has been seen before ends the row."""
    denoiser = editor(busy=0.0)
    denoiser.model.rates[1, BOS, 0] = denoiser.model.rates[2, BOS, 0] = 0.9
    state, steps, _ = run(EditFlowSampler(denoiser, mode="threshold", suppress_tokens=[0, *range(3, 8)]), [[BOS, 1]])
    assert [op.new for op in state.operations[0]] == [2, 1]
    assert len(steps) == 2


@functools.cache
def masked_toy() -> Denoiser:
    return exact_editor(random_joint(3, 5, seed=1))


def test_corrections_write_again_and_end_without_masks():
    sampler = EditFlowSampler(masked_toy(), correction=(10.0, 0.5, 0.5), temperature=1.0, steps=32, max_new_tokens=4)
    state = sampler.start([[1]])
    while not state.finished:
        sampler.step(state)
    assert any(op.new == 3 for op in state.operations[0])  # the mask again
    assert 3 not in rows_of(state)[0]
    assert replay(state.operations[0], [1, 3, 3, 3, 3]) == rows_of(state)[0]
    with pytest.raises(OptionError, match="would have to be trained"):
        sampler.start_edit([[0, 1]])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mode": "event"}, "knows the time"),
        ({"mode": "one", "steps": 3}, "max_passes"),
        ({"grid": "time", "strength": 0.5}, "strength"),
        ({"mode": "one", "correction": (1, 1, 1)}, "correction"),
        ({"max_length": 3, "max_new_tokens": 3}, "exclude"),
        ({"block_size": 3}, "block_size"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, named):
    with pytest.raises(OptionError, match=named):
        EditFlowSampler(editor(timed=True), **options)


@pytest.mark.parametrize(
    ("rows", "flags", "named"),
    [
        ([[]], {}, "empty"),
        ([[1] * (CONTEXT + 1)], {}, str(CONTEXT)),
        ([[1, 2]], {"locked": [[True]]}, "2 tokens but 1 flags in locked"),
        ([[1, 2]], {"gaps": [[True] * 3]}, "2 tokens but 3 flags in gaps"),
        ([[1, 99]], {}, "99"),
    ],
)
def test_drafts_that_cannot_be_are_refused(rows, flags, named):
    with pytest.raises(PromptError, match=named):
        EditFlowSampler(editor()).start_edit(rows, **flags)
