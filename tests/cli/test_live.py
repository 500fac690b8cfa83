"""The live view: token ids to styled text, and frames on a terminal of any size, encoding and colour."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, Group
from rich.style import Style

from dllm_core.display import live
from dllm_core.display.live import LiveView, Row
from dllm_core.display.text import (
    ASCII,
    MASK_STYLE,
    STYLES,
    UNICODE,
    Age,
    TokenText,
    canvas_text,
    fold,
    glyphs_for,
    progress_text,
    shown_as,
    window,
)
from dllm_core.samplers.output import Step

MASK, END, PAD = 256, 257, 258


def decode_bytes(ids: list[int]) -> str:
    """A byte-level tokenizer: token n is byte n."""
    return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def decode_words(ids: list[int]) -> str:
    """A tokenizer that writes spaces between words, and none before the first: decoding depends on the token before."""
    return " ".join(f"w{i}" for i in ids)


def decode_twice(ids: list[int]) -> str:
    """A tokenizer whose text depends on more than one token before."""
    return f"{len(ids)}:{ids}"


def encode(text: str) -> list[int]:
    return list(text.encode())


def shown(ids: list[int], ages: list[int] | None = None, **options: object):
    tokens = TokenText(decode_bytes)
    ages = ages or [Age.SETTLED] * len(ids)
    return canvas_text(ids, ages, tokens, mask_id=MASK, special_ids={END}, **options)


def style_of(text, part: str) -> set[str]:
    start = text.plain.index(part)
    return {str(span.style) for span in text.spans if span.start < start + len(part) and span.end > start}


# ---- tokens to text


@pytest.mark.parametrize("decode", [decode_bytes, decode_words, decode_twice])
@given(ids=st.lists(st.integers(0, 255), min_size=1, max_size=30))
def test_pieces_join_to_what_the_tokenizer_decodes(decode, ids):
    pieces = TokenText(decode).pieces(ids)
    assert "".join(piece.text for piece in pieces) == decode(ids)
    assert [piece.start for piece in pieces] == [0, *[piece.stop for piece in pieces[:-1]]]
    assert pieces[-1].stop == len(ids)


@given(text=st.text(max_size=20))
def test_every_character_of_a_byte_tokenizer_is_a_piece_of_its_own(text):
    assert [piece.text for piece in TokenText(decode_bytes).pieces(encode(text))] == list(text)


def test_a_settled_token_is_decoded_once():
    calls: list[int] = []

    def decode(ids: list[int]) -> str:
        calls.append(len(ids))
        return decode_words(ids)

    tokens = TokenText(decode)
    tokens.pieces([1, 2, 3])
    calls.clear()
    tokens.pieces([1, 2, 3])
    assert calls == [3]  # only the check of the whole


def test_masks_are_blocks_and_ends_are_dots():
    text = shown([*encode("Hi"), MASK, MASK, *encode("!"), END, END])
    assert text.plain == "Hi░░!··"
    assert style_of(text, "░░") == {MASK_STYLE}


def test_a_character_with_masked_bytes_is_shown_as_partial_until_it_is_whole():
    first, *rest = encode("é")
    assert shown([first, MASK]).plain == "▒░"
    assert shown([first, *rest]).plain == "é"


def test_freshly_committed_tokens_stand_out_and_given_text_is_dim():
    text = shown(encode("abcd"), [Age.FRESH, Age.RECENT, Age.SETTLED, Age.GIVEN])
    assert [style_of(text, letter) for letter in "abcd"] == [
        {STYLES[Age.FRESH]},
        {STYLES[Age.RECENT]},
        set(),
        {STYLES[Age.GIVEN]},
    ]


def test_a_character_of_several_tokens_is_as_fresh_as_its_youngest():
    text = shown(encode("é"), [Age.SETTLED, Age.FRESH])
    assert style_of(text, "é") == {STYLES[Age.FRESH]}


@pytest.mark.parametrize(("raw", "visible"), [("\x1b[2J", "�[2J"), ("a\tb", "a    b"), ("a\nb", "a\nb"), ("‮x", "x")])
def test_control_characters_of_a_model_do_not_reach_the_terminal(raw, visible):
    assert shown_as(raw, "utf-8") == visible


def test_wide_characters_and_joined_emoji_are_kept():
    assert shown_as("你好　👩‍🚀é", "utf-8") == "你好　👩‍🚀é"


@pytest.mark.parametrize(("encoding", "glyphs"), [("utf-8", UNICODE), ("ascii", ASCII), ("latin-1", ASCII)])
def test_marks_fit_the_encoding(encoding, glyphs):
    assert glyphs_for(encoding) is glyphs
    text = shown([*encode("é"), MASK, END], glyphs=glyphs, encoding=encoding)
    assert text.plain.encode(encoding)


# ---- lines


def lines_of(count: int, masked: int | None) -> list:
    rows = [shown([MASK] if n == masked else encode(f"line {n}")) for n in range(count)]
    return list(rows)


@given(text=st.text(alphabet="ab 你🦊\n", max_size=100), width=st.integers(2, 30))
def test_folded_lines_fit_and_join_to_the_text(text, width):
    lines = fold(shown(encode(text)), width)
    assert all(line.cell_len <= width for line in lines)
    assert "".join(line.plain for line in lines) == text.replace("\n", "")
    for paragraph in text.split("\n"):
        assert any(paragraph.startswith(line.plain) for line in lines)


def test_a_text_is_folded_at_the_edge_as_a_terminal_does():
    assert [line.plain for line in fold(shown(encode("one two\n\nthree")), 5)] == ["one t", "wo", "", "three"]


@pytest.mark.parametrize(("masked", "expected"), [(0, 0), (10, 8), (19, 15), (None, 15)])
def test_the_window_follows_the_first_masked_line(masked, expected):
    rows = lines_of(20, masked)
    assert window(rows, 5) == rows[expected : expected + 5]


def test_a_window_that_is_high_enough_shows_all():
    rows = lines_of(3, 1)
    assert window(rows, 3) == rows


@given(width=st.integers(4, 120), done=st.floats(0, 1))
def test_the_progress_line_fits_and_shows_the_important_first(width, done):
    text = progress_text(done=done, parts=["step 3/8", "1.2 s", "block 1/2"], width=width)
    assert text.cell_len <= width
    for earlier, later in (("step", "1.2 s"), ("1.2 s", "block")):
        assert earlier in text.plain or later not in text.plain


def test_the_bar_is_empty_at_first_and_full_at_last():
    assert UNICODE.bar_done not in progress_text(done=0.0, parts=[], width=80).plain
    assert UNICODE.bar_left not in progress_text(done=1.0, parts=[], width=80).plain


# ---- frames


class Terminal:
    """A console that writes into memory, and can say what the last frame looked like."""

    def __init__(self, width: int = 80, height: int = 24, encoding: str = "utf-8", **options: object) -> None:
        self.bytes = io.BytesIO()
        self.file = io.TextIOWrapper(self.bytes, encoding=encoding, write_through=True)
        self.console = Console(
            file=self.file,
            width=width,
            height=height,
            force_terminal=True,
            color_system=options.pop("color_system", "truecolor"),
            _environ={},
            **options,
        )

    @property
    def written(self) -> str:
        return self.bytes.getvalue().decode(self.file.encoding)

    def frame(self, view: LiveView) -> list[str]:
        return [line.plain for line in view.lines()]


def step(
    index: int,
    ids: list[list[int]],
    committed: list[list[bool]],
    block: int = 0,
    confidence: list[list[float]] | None = None,
    edits: list[list[Edit]] | None = None,
) -> Step:
    canvas = torch.tensor(ids)
    sure = torch.full(canvas.shape, torch.nan) if confidence is None else torch.tensor(confidence)
    return Step(index, block, canvas, torch.tensor(committed), sure, torch.zeros(len(ids), dtype=torch.bool), edits)


class Edit(NamedTuple):
    kind: str
    position: int
    old: int | None
    new: int | None


def view_of(terminal: Terminal, ids: list[list[int]], rows: list[Row] | None = None, **options: object) -> LiveView:
    rows = rows or [Row("Say something", 0, len(row)) for row in ids]
    tokens = TokenText(decode_bytes)
    options = {"pause": 1e-9, "pauses": 1.0} | options  # every step is drawn
    return LiveView(terminal.console, rows, torch.tensor(ids), tokens, mask_id=MASK, special_ids=[END], **options)


def test_a_frame_shows_prompt_canvas_and_progress():
    terminal = Terminal()
    with view_of(terminal, [[MASK] * 4], steps=2, blocks=2) as view:
        view.show(step(0, [[*encode("Hi"), MASK, MASK]], [[True, True, False, False]]))
        assert terminal.frame(view)[:3] == ["❯ Say something", "Hi░░", ""]
        assert "step 1/2" in terminal.frame(view)[3]
        assert "block 1/2" in terminal.frame(view)[3]
        assert "2.0 tokens/step" in terminal.frame(view)[3]


def test_only_the_shown_positions_of_a_row_appear():
    terminal = Terminal()
    ids = [[*encode("ab"), MASK, MASK, PAD]]
    with view_of(terminal, ids, [Row("ab", 2, 4)]) as view:
        assert terminal.frame(view)[1] == "░░"


def test_given_text_around_blanks_is_dim_and_the_fill_is_not():
    terminal = Terminal()
    with view_of(terminal, [[*encode("a"), MASK, *encode("c")]], [Row("", 0, 3)], pause=1e-9, pauses=1.0) as view:
        for index in range(4):  # old enough to be plain
            view.show(step(index, [encode("abc")], [[False, index == 0, False]]))
        text = next(iter(terminal.console.render_lines(Group(*view.lines()))))
        styles = {segment.text: str(segment.style) for segment in text if segment.text.strip()}
        assert "dim" in styles["a"]
        assert "dim" in styles["c"]
        assert "dim" not in styles["b"]


@given(
    width=st.integers(10, 120),
    height=st.integers(4, 50),
    rows=st.integers(1, 12),
    text=st.text(alphabet="ab 你🦊\n", min_size=1, max_size=200),
)
def test_a_frame_never_outgrows_the_terminal(width, height, rows, text):
    terminal = Terminal(width, height)
    view = view_of(terminal, [[*encode(text), MASK]] * rows, [Row(text, 0, len(encode(text)) + 1)] * rows)
    frame = terminal.frame(view)
    assert len(frame) < height
    assert max(map(cell_len, frame)) <= width


def test_rows_that_do_not_fit_are_counted():
    terminal = Terminal(80, 12)
    view = view_of(terminal, [[MASK] * 4] * 20)
    frame = terminal.frame(view)
    captions = sum(line.startswith("❯") for line in frame)
    assert 1 <= captions < 20
    assert f"… and {20 - captions} more" in frame


def test_a_long_prompt_is_cut_with_an_ellipsis():
    terminal = Terminal(40)
    frame = terminal.frame(view_of(terminal, [[MASK]], [Row("word " * 100, 0, 1)]))
    assert frame[live.CAPTION_LINES - 1].endswith("…")
    assert frame[live.CAPTION_LINES] == "░"


def test_the_view_is_erased_at_the_end():
    terminal = Terminal()
    with view_of(terminal, [[MASK] * 4]) as view:
        view.show(step(0, [[*encode("Hi"), MASK, MASK]], [[True, True, False, False]]))
    assert terminal.written.endswith("\r\x1b[4A\x1b[J\x1b[?25h")  # up all its lines, away with them, the cursor is back


def test_without_colours_what_is_new_differs_in_form():
    new = [STYLES[age] for age in Age if age <= Age.FRESH and age != Age.REVOKED]  # that one is seen by its mask
    forms = [Style.parse(style).without_color for style in [*new, STYLES[Age.SETTLED]]]
    assert len(set(forms)) == len(forms)


def test_no_color_means_no_colour_codes():
    terminal = Terminal(no_color=True)
    with view_of(terminal, [[MASK] * 4]) as view:
        view.show(step(0, [[*encode("Hi"), MASK, END]], [[True, True, False, True]]))
    codes = {code for found in re.findall(r"\x1b\[([\d;]*)m", terminal.written) for code in found.split(";")}
    assert codes <= {"", "0", "1", "2", "3", "4", "9"}  # bold, dim, italic, underlined and struck through remain


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_plain_marks(encoding):
    terminal = Terminal(encoding=encoding)
    with view_of(terminal, [[*encode("你"), MASK, END]]):
        assert "?_." in re.sub(r"\x1b\[[\d;]*m", "", terminal.written)


def test_drawing_is_spaced_so_that_it_takes_a_small_share_of_the_time(monkeypatch):
    """With a clock on which a step takes 1 ms and a frame 4 ms: frames, not steps, are counted."""
    now = 0.0
    frames = 0

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now

        @staticmethod
        def sleep(seconds: float) -> None:
            raise AssertionError("only demonstrations sleep")

    def draw(view: LiveView) -> None:
        nonlocal now, frames
        now += 0.004
        frames += 1

    monkeypatch.setattr(live, "time", Clock)
    monkeypatch.setattr(LiveView, "_draw", draw)
    canvas = [[MASK] * 4]
    with view_of(Terminal(), canvas, pauses=0.0) as view:
        for index in range(10_000):
            now += 0.001
            view.show(step(index, canvas, [[False] * 4]))
    assert frames * 0.004 <= 0.016 * now
    assert frames > 20


def test_what_was_committed_between_two_frames_is_fresh_in_the_next(monkeypatch):
    now = 0.0
    monkeypatch.setattr(live, "time", SimpleNamespace(perf_counter=lambda: now, sleep=lambda seconds: None))
    terminal = Terminal()
    with view_of(terminal, [[MASK, MASK]], pauses=0.0) as view:
        view.show(step(0, [[MASK, MASK]], [[False, False]]))
        view.show(step(1, [[*encode("a"), MASK]], [[True, False]]))  # not drawn: too soon
        assert "a" not in terminal.frame(view)[1]
        now += 10.0
        view.show(step(2, [encode("ab")], [[False, True]]))
        segments = [s for s in terminal.console.render_lines(Group(*view.lines()))[1] if s.text.strip()]
        assert all(segment.style.bold and segment.style.bgcolor for segment in segments)
        assert "".join(s.text for s in segments) == "ab"


def test_a_demonstration_waits_after_each_step_until_its_time_is_up(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(live, "time", SimpleNamespace(perf_counter=lambda: 0.0, sleep=waited.append))
    with view_of(Terminal(), [[MASK]], pause=0.5, pauses=1.4) as view:
        for index in range(10):
            view.show(step(index, [[MASK]], [[False]]))
    assert waited == [0.5] * 3


def test_a_replaced_token_stands_out_from_a_written_one_until_the_next_frame(monkeypatch):
    now = 0.0
    monkeypatch.setattr(live, "time", SimpleNamespace(perf_counter=lambda: now, sleep=lambda seconds: None))
    with view_of(Terminal(), [[MASK, MASK]]) as view:
        seen = []
        for index, (ids, committed) in enumerate([("a", [True, False]), ("bc", [True, True]), ("bc", [False, False])]):
            now += 10.0
            view.show(step(index, [[*encode(ids), MASK][:2]], [committed]))
            seen.append(list(view._cells[0].ages))
    assert seen[1:] == [[Age.REPLACED, Age.FRESH], [Age.RECENT, Age.RECENT]]
    assert STYLES[Age.REPLACED] != STYLES[Age.FRESH]
