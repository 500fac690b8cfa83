"""Editing a text: what is not edited stays as it is, patches apply, logs replay and can be undone."""

from __future__ import annotations

import io
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_core.editing import EditSession, Span, lay_out, line_span, read_log, replay, tokenized, undo, unified_diff
from dllm_core.editing.distance import edit_distance
from dllm_core.editing.draft import Draft, line_starts
from dllm_core.editing.log import hunks_between, write_log
from dllm_core.editing.window import window_of
from dllm_core.errors import DataError, OptionError, PromptError
from tests.editing.scripted import ScriptedSampler, tokenizer

LETTERS = st.sampled_from("ab ret\n\r\tñ日😀é👩‍👩‍👧-+@\\")
TEXTS = st.text(LETTERS, min_size=1, max_size=40)
SAMPLE = "def añb(int):\r\n\tret 日😀\n  ret int"


def edited(text: str, seed: int, regions=None, protected=(), *, plain: bool = False) -> EditSession:
    regions = [Span(0, len(text))] if regions is None else regions
    layout = lay_out([], tokenized(text, tokenizer()), regions, protected, window=Span(0, len(text)))
    session = EditSession(ScriptedSampler(seed, plain=plain), layout, {})
    while not session.finished:
        session.step()
    return session


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_a_text_without_edits_is_itself(text):
    layout = lay_out([7], tokenized(text, tokenizer()), [Span(0, len(text))], [], window=Span(0, len(text)))
    session = EditSession(ScriptedSampler(0, rate=0.0), layout, {})
    session.step()
    assert session.text == text
    assert session.log.steps == []


@given(text=TEXTS, seed=st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_logs_replay_and_can_be_undone(text, seed):
    session = edited(text, seed)
    log = session.finish().log
    assert replay(log, text) == session.text
    assert undo(log, session.text) == text
    assert len(log.edits) == session.made
    if text != session.text:
        with pytest.raises(DataError, match="not the text"):
            replay(log, session.text)


@given(text=TEXTS, seed=st.integers(0, 1000), cut=st.tuples(st.integers(0, 40), st.integers(0, 40)))
@settings(max_examples=200, deadline=None)
def test_what_lies_outside_the_region_stays(text, seed, cut):
    start, stop = sorted(min(each, len(text)) for each in cut)
    try:
        session = edited(text, seed, [Span(start, stop)])
    except PromptError:
        return  # nothing lies in it as a whole
    assert session.text.startswith(text[:start])
    assert session.text.endswith(text[stop:])
    assert len(session.text) >= start + len(text) - stop


@given(text=TEXTS, seed=st.integers(0, 1000), cut=st.tuples(st.integers(0, 40), st.integers(0, 40)))
@settings(max_examples=200, deadline=None)
def test_what_is_protected_stays(text, seed, cut):
    start, stop = sorted(min(each, len(text)) for each in cut)
    try:
        session = edited(text, seed, protected=[Span(start, stop)])
    except PromptError:
        return
    assert text[start:stop] in session.text


@given(text=st.text("ab ret\nint", min_size=1, max_size=40), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_the_text_is_that_of_the_samplers_tokens(text, seed):
    layout = lay_out([5], tokenized(text, tokenizer()), [Span(0, len(text))], [], window=Span(0, len(text)))
    session = EditSession(ScriptedSampler(seed, plain=True), layout, {})
    while not session.finished:
        session.step()
        assert session.text == tokenizer().decode(session.state.rows[1:])
        shown = [(part, kind) for part, kind in session.marked if kind != "delete"]
        assert "".join(part for part, _ in shown) == session.text


@pytest.mark.parametrize("text", ["int\r\nret\r\n", "\r\n\r\n a\r\n\r\nint", "日\r\n😀é\r\n", "a\rb\r\n"])
def test_pairs_at_the_ends_of_lines_are_read_as_line_feeds_and_stay_pairs(text):
    draft = tokenized(text, tokenizer())
    assert draft.ids == tokenizer()(text.replace("\r\n", "\n"))["input_ids"]
    covered = {place for span in draft.spans for place in range(*span)}
    assert covered == set(range(len(text)))
    for seed in range(20):
        session = edited(text, seed, plain=True)
        assert "\n" not in session.text.replace("\r\n", "")
        assert session.text.replace("\r\n", "\n") == tokenizer().decode(session.state.rows)


def test_line_ends_of_both_kinds_are_read_as_they_are():
    draft = tokenized("a\r\nb\n", tokenizer())
    assert tokenizer().decode(draft.ids) == "a\r\nb\n"


def test_tokens_of_one_character_are_edited_together_or_decoded():
    """A token of four bytes of an emoji that goes leaves a mark, and the characters around it stay."""
    text = "a😀b"
    draft = tokenized(text, tokenizer())
    assert len(draft.ids) > 3
    layout = lay_out([], draft, [Span(0, 3)], [], window=Span(0, 3))
    session = EditSession(ScriptedSampler(0), layout, {})
    session.pieces = [piece for piece in session.pieces if piece.key != 2]
    text_now = "".join(session._texts(session.pieces)[0])
    assert text_now[0] == "a"
    assert text_now[-1] == "b"
    assert "😀" not in text_now


@given(text=TEXTS, seed=st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_git_applies_the_patch(text, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("patch")
    after = edited(text, seed).text
    assert applied(folder, "a file ä.txt", text, after) == after.encode()


@pytest.mark.parametrize(
    ("before", "after"),
    [("a\nb\n", "a\nc"), ("a\nb", "a\nb\n"), ("a", "b"), ("a\r\nb\r\n", "a\r\nx\r\n"), ("a\fb\nc\n", "a\fb\nd\n")],
)
def test_git_applies_patches_of_odd_ends(tmp_path, before, after):
    assert applied(tmp_path, "x.txt", before, after) == after.encode()


def applied(folder, name: str, before: str, after: str) -> bytes:
    """What git makes of a file by the patch."""
    file = folder / name
    file.write_bytes(before.encode())
    patch = unified_diff(before, after, name)
    assert bool(patch) == (before != after)
    if patch:
        command = ["git", "-c", "core.autocrlf=false", "apply", "--whitespace=nowarn", "-"]
        done = subprocess.run(command, input=patch.encode(), cwd=folder, capture_output=True)
        assert done.returncode == 0, done.stderr.decode() + patch
    return file.read_bytes()


def test_a_log_is_a_file(tmp_path):
    log = edited(SAMPLE, 3).finish().log
    assert log.steps
    buffer = io.BytesIO()
    write_log(log, buffer)
    (tmp_path / "a.log").write_bytes(buffer.getvalue())
    assert read_log(tmp_path / "a.log") == log
    for content in ("", "{}", "not json", '{"format": "dllm-edit-log", "version": 99}'):
        (tmp_path / "b.log").write_text(content)
        with pytest.raises(DataError, match=r"no log of dllm edit"):
            read_log(tmp_path / "b.log")
    with pytest.raises(DataError, match="cannot be read"):
        read_log(tmp_path / "none.log")


def test_hunks_are_what_differs():
    before = [(0, "a"), (1, "b"), (2, "c")]
    assert hunks_between(before, before, 5) == []
    assert hunks_between(before, [(0, "a"), (9, "x"), (2, "c")], 5) == [(6, "b", "x")]
    assert hunks_between(before, [(8, "x"), (0, "a"), (1, "b")], 0) == [(0, "", "x"), (2, "c", "")]
    assert hunks_between(before, [(0, "a"), (1, "B"), (2, "c")], 0) == [(1, "b", "B")]


def test_lines_are_counted_from_one():
    text = "one\ntwo\r\nthree\n"
    assert line_starts(text) == [0, 4, 9]
    assert [text[slice(*line_span(text, *pair, flag="--lines"))] for pair in ((1, 1), (2, 2), (2, 3))] == [
        "one",
        "two",
        "two\r\nthree",
    ]
    for pair in ((0, 1), (2, 4), (3, 2)):
        with pytest.raises(OptionError, match="lines 1 to 3"):
            line_span(text, *pair, flag="--lines")


def test_a_window_holds_the_region_and_what_fits_around_it():
    text = "".join(f"line {number}\n" for number in range(100))
    draft = Draft(text, list(range(len(text))), [Span(place, place + 1) for place in range(len(text))])
    region = line_span(text, 50, 51, flag="--lines")
    window = window_of(draft, [region], taken=4, context=84)
    assert window.start <= region.start < region.stop <= window.stop
    assert 40 <= window.stop - window.start <= 60
    assert text[window.start - 1] == "\n"
    assert window_of(draft, [], taken=0, context=80).start == 0
    with pytest.raises(PromptError, match="fewer lines"):
        window_of(draft, [Span(0, len(text))], taken=0, context=80)


@given(before=st.lists(st.integers(0, 3), max_size=14), after=st.lists(st.integers(0, 3), max_size=14))
@settings(max_examples=100, deadline=None)
def test_the_distance_is_levenshteins(before, after):
    table = [[i + j if not i * j else 0 for j in range(len(after) + 1)] for i in range(len(before) + 1)]
    for i in range(1, len(before) + 1):
        for j in range(1, len(after) + 1):
            kept = table[i - 1][j - 1] + (before[i - 1] != after[j - 1])
            table[i][j] = min(kept, table[i - 1][j] + 1, table[i][j - 1] + 1)
    assert edit_distance(before, after) == table[-1][-1]


def test_edits_at_both_ends_of_a_long_text_are_counted_near_the_diagonal():
    compared = 0

    class Token(int):
        __hash__ = int.__hash__

        def __ne__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return int(self) != other

    before = [Token(number % 97) for number in range(4000)]
    after = [1, *map(int, before[1:-1]), 5, 6]
    assert edit_distance(before, after) == 3
    assert compared < 4000 * 10  # of 16,000,000 pairs


def test_a_token_over_a_border_is_locked_and_borders_are_open():
    text = "a ret b"
    draft = tokenized(text, tokenizer())
    tokens = [text[slice(*span)] for span in draft.spans]
    place = tokens.index("ret")
    cut = lay_out([], draft, [Span(0, 3)], [], window=Span(0, len(text)))
    assert cut.locked == [each >= place for each in range(len(tokens))]
    kept = lay_out([], draft, [Span(0, len(text))], [Span(2, 5)], window=Span(0, len(text)))
    assert kept.locked == [each == place for each in range(len(tokens))]
    assert all(kept.gaps)  # before and behind what is protected, too


def test_names_with_blanks_end_with_a_tab_as_git_writes_them():
    assert unified_diff("a\n", "b\n", "a b.py").startswith("--- a/a b.py\t\n+++ b/a b.py\t\n@@")
    assert unified_diff("a\n", "b\n", "a.py").startswith("--- a/a.py\n+++ b/a.py\n@@")
