"""The live view of lengths that change, of confidence and of blocks, and what a resized terminal leaves."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Group

from dllm_core.display import live
from dllm_core.display.cells import shade
from dllm_core.display.live import LiveView, Row
from dllm_core.display.text import STYLES, Age, legend_text
from dllm_core.samplers.output import Step
from tests.cli.test_live import MASK, PAD, Edit, Terminal, encode, shown, step, view_of


@pytest.fixture
def clock(monkeypatch):
    """Every step is due for a frame."""
    moment = SimpleNamespace(now=0.0)

    def later() -> float:
        moment.now += 1e6
        return moment.now

    monkeypatch.setattr(live, "time", SimpleNamespace(perf_counter=later, sleep=lambda seconds: None))
    monkeypatch.setitem(LiveView.__init__.__kwdefaults__, "overhead", 1e9)


def styled(terminal: Terminal, view: LiveView, line: int = 1) -> dict[str, str]:
    lines = terminal.console.render_lines(Group(*view.lines()), pad=False)
    return {s.text: str(s.style) for s in lines[line] if s.text.strip()}


def edit_step(index: int, text: str, *edits: Edit) -> Step:
    ids = encode(text)
    return step(index, [ids], [[False] * len(ids)], edits=[list(edits)])


def test_edits_are_shown_by_kind_and_deleted_tokens_stay_for_two_frames(clock):
    terminal = Terminal()
    edits = [Edit("insert", -1, None, 62), Edit("delete", 1, 98, None), Edit("substitute", 2, 99, 67)]
    with view_of(terminal, [encode("abc")]) as view:
        view.show(edit_step(0, ">aC", *edits))
        assert terminal.frame(view)[1] == ">abC"
        shown = styled(terminal, view)
        assert "strike" in shown["b"]
        assert "underline" in shown[">"]
        assert "bold" in shown["C"]
        assert len({shown[">"], shown["b"], shown["C"], shown["a"]}) == 4
        assert "3 edits" in terminal.frame(view)[3]
        assert [word in terminal.frame(view)[4] for word in ("inserted", "substituted", "deleted")] == [True] * 3
        view.show(edit_step(1, ">aC"))
        assert terminal.frame(view)[1] == ">abC"
        view.show(edit_step(2, ">aC"))
        assert terminal.frame(view)[1] == ">aC"


def edited_text(seed: int) -> tuple[list[int], list[tuple[list[Edit], list[int]]]]:
    """A text, and steps of edits with the text that each leaves."""
    draw = random.Random(seed)
    first = now = [draw.randrange(97, 123) for _ in range(draw.randrange(1, 9))]
    steps = []
    for _ in range(draw.randrange(1, 6)):
        edits, after = [], []
        for place, token in enumerate([None, *now], start=-1):
            kept, new = draw.choice(["keep", "keep", "delete", "substitute"]), draw.randrange(97, 123)
            if token is not None and kept != "keep":
                edits.append(Edit(kept, place, token, new if kept == "substitute" else None))
            after += [] if token is None or kept == "delete" else [new if kept == "substitute" else token]
            if draw.random() < 0.3:
                after.append(draw.randrange(97, 123))
                edits.append(Edit("insert", place, None, after[-1]))
        steps.append((edits, after))
        now = after
    return first, steps


@given(seed=st.integers(0, 10**6), other=st.integers(0, 10**6), drawn=st.lists(st.booleans(), min_size=5, max_size=5))
def test_after_any_edits_the_rows_hold_the_tokens_of_the_canvas(seed, other, drawn):
    case, other = edited_text(seed), edited_text(other)
    first, steps = case
    second, more = other
    rows = [Row("", 0, len(first)), Row("", 0, len(second))]
    width = max(len(first), len(second))
    canvas = [row + [PAD] * (width - len(row)) for row in (first, second)]
    view = view_of(Terminal(), canvas, rows)
    ends = [first, second]
    for index, (edits, after) in enumerate(steps):
        own, end = more[index] if index < len(more) else ([], ends[1])
        ends = [after, end]
        width = max(map(len, ends))
        one = step(index, [row + [PAD] * (width - len(row)) for row in ends], [[False] * width] * 2, edits=[edits, own])
        view._note(one)
        if drawn[index]:
            view._take(one)
    view._take(one)
    for number in range(2):
        cells = view._shown(number)
        assert [cells.ids[place] for place in cells.live] == ends[number]


def test_what_was_inserted_and_deleted_between_two_frames_is_never_shown(monkeypatch):
    now = 0.0
    monkeypatch.setattr(live, "time", SimpleNamespace(perf_counter=lambda: now, sleep=lambda seconds: None))
    terminal = Terminal()
    with view_of(terminal, [encode("ab")], pauses=0.0) as view:
        view.show(edit_step(0, "ab"))
        view.show(edit_step(1, "axb", Edit("insert", 0, None, 120)))  # not drawn: too soon
        now += 10.0
        view.show(edit_step(2, "ab", Edit("delete", 1, 120, None)))
        assert terminal.frame(view)[1] == "ab"


def test_confidence_has_three_shades_and_a_legend(clock):
    terminal = Terminal()
    with view_of(terminal, [[MASK] * 4]) as view:
        view.show(step(0, [[*encode("abc"), MASK]], [[True] * 3 + [False]], confidence=[[0.95, 0.6, 0.2, 0.1]]))
        shown = styled(terminal, view)
        assert [shown[letter] for letter in "abc"] == [
            str(terminal.console.get_style(STYLES[age])) for age in (Age.FRESH, Age.LIKELY, Age.UNSURE)
        ]
        assert terminal.frame(view)[-1] == "sure likely unsure"


@pytest.mark.parametrize(
    ("surety", "age"),
    [(0.9, Age.FRESH), (0.5, Age.LIKELY), (0.49, Age.UNSURE), (float("nan"), Age.FRESH), (-0.01, Age.FRESH)],
)
def test_negative_entropies_are_shaded_like_the_probabilities_that_they_stand_for(surety, age):
    assert shade(surety) == age


def test_a_token_that_is_masked_again_is_marked(clock):
    terminal = Terminal()
    with view_of(terminal, [[MASK, MASK]]) as view:
        view.show(step(0, [encode("ab")], [[True, True]]))
        view.show(step(1, [[*encode("a"), MASK]], [[False, False]]))
        assert "magenta" in styled(terminal, view)["░"]
        view.show(step(2, [[*encode("a"), MASK]], [[False, False]]))
        assert "magenta" not in styled(terminal, view)["░"]
        assert terminal.frame(view)[-1] == "sure masked again"


def test_blocks_are_marked_and_forward_passes_counted(clock):
    terminal = Terminal()
    rows = [Row("", 2, 6, boundaries=(4,))]
    ids = [*encode(">>"), MASK, MASK, MASK, MASK]
    with view_of(terminal, [ids], rows, blocks=2, forward_passes=lambda: 4) as view:
        view.show(step(0, [[*encode(">>ab"), MASK, MASK]], [[False, False, True, True, False, False]]))
        assert terminal.frame(view)[0] == "ab┊░░"
        assert "0.5 tokens/forward" in terminal.frame(view)[2]


def test_a_block_that_begins_inside_a_character_is_marked_in_front_of_it():
    assert shown(encode("aé!"), boundaries={2}).plain == "a┊é!"
    assert shown(encode("aé!"), boundaries={3}).plain == "aé┊!"


@given(width=st.integers(1, 80))
def test_the_legend_fits(width):
    assert legend_text(set(STYLES), width).cell_len <= width


def test_what_a_narrower_terminal_made_of_the_last_frame_is_taken_away(clock):
    terminal = Terminal(80, 24)
    with view_of(terminal, [[MASK] * 60], [Row("", 0, 60)]) as view:
        terminal.console.size = (30, 24)
        before = len(terminal.written)
        view.show(step(0, [[MASK] * 60], [[False] * 60]))
        room = terminal.written[before:].split("\x1b[2K")[0]
        # 60 masks fold to two lines; a blank line, the progress and the legend have one each
        assert room.startswith("\r\x1b[4A\x1b[J")
