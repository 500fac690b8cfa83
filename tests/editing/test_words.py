"""Editing with tokenizers that read no blanks; windows, instructions, and samplers that do not do as they are told."""

from __future__ import annotations

import json
import os
import subprocess
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_core.cli import editing as command
from dllm_core.cli import root
from dllm_core.editing import EditSession, Span, lay_out, line_span, replay, tokenized, undo
from dllm_core.errors import DllmError, PromptError
from tests.editing.scripted import tokenizer as letters
from tests.editing.words import BLUE, CLOSE, CLS, GREEN, NAMES, ONE, PLURAL, RED, Obedient, model, words

TEXTS = st.lists(
    st.sampled_from(["red", "green", "blues", "(", ")", " ", "  ", "\t", "\n", "\r\n", "é"]), min_size=1, max_size=20
).map("".join)
SCRIPTS = st.lists(
    st.tuples(st.sampled_from(["insert", "delete", "substitute"]), st.integers(0, 40), st.integers(4, len(NAMES) - 1)),
    max_size=10,
)


def session(text, script, regions=None, protected=(), *, tokenizer=None, prefix=(CLS,), obeys=True) -> EditSession:
    tokenizer = tokenizer or words()
    regions = [Span(0, len(text))] if regions is None else regions
    layout = lay_out(list(prefix), tokenized(text, tokenizer), regions, protected, window=Span(0, len(text)))
    run = EditSession(Obedient(model(tokenizer), script, obeys), layout, {})
    while not run.finished:
        run.step()
    return run


@pytest.mark.parametrize(
    ("text", "script", "after"),
    [
        ("one  red\n two", [("substitute", 2, BLUE)], "one  blue\n two"),
        ("one  red\n two", [("insert", 2, BLUE)], "one  red blue\n two"),
        ("one  red\n two", [("delete", 2, 0)], "one\n two"),
        ("one\tred", [("insert", 0, BLUE)], "blue one\tred"),
        ("one red", [("insert", 1, PLURAL)], "ones red"),
        ("one\n", [("delete", 1, 0)], "\n"),
        ("(red)\n", [("substitute", 2, GREEN)], "(green)\n"),
        ("red  blue", [("substitute", 1, ONE), ("substitute", 2, ONE)], "one  one"),
    ],
)
def test_blanks_that_no_token_stands_for(text, script, after):
    assert session(text, script).text == after


@given(text=TEXTS, script=SCRIPTS, data=st.data())
@settings(max_examples=300, deadline=None)
def test_lines_around_the_region_stay(text, script, data):
    count = text.count("\n") + (not text.endswith("\n"))
    first = data.draw(st.integers(1, count))
    region = line_span(text, first, data.draw(st.integers(first, count)), flag="--lines")
    try:
        run = session(text, script, [region])
    except PromptError:
        return
    edited = run.finish()
    assert edited.text.startswith(text[: region.start])
    assert edited.text.endswith(text[region.stop :])
    assert len(edited.text) >= len(text) - (region.stop - region.start)
    assert replay(edited.log, text) == edited.text
    assert undo(edited.log, edited.text) == text


@given(text=TEXTS, script=SCRIPTS, data=st.data())
@settings(max_examples=200, deadline=None)
def test_protected_lines_stay(text, script, data):
    line = data.draw(st.integers(1, text.count("\n") + (not text.endswith("\n"))))
    kept = line_span(text, line, line, flag="--protect")
    try:
        edited = session(text, script, protected=[kept]).finish()
    except PromptError:
        return
    assert text[slice(*kept)] in edited.text


def test_line_ends_are_those_of_the_file():
    line_feed, letter = letters()("\na")["input_ids"]
    script = [("insert", 0, line_feed), ("insert", 1, letter)]
    assert session("b\r\nc\r\n", script, tokenizer=letters(), prefix=()).text == "b\r\na\r\nc\r\n"
    assert session("b\nc\r\n", script, tokenizer=letters(), prefix=()).text == "b\na\nc\r\n"


@pytest.mark.parametrize("script", [[("delete", -1, 0)], [("substitute", -1, RED)], [("insert", -1, RED)]])
def test_a_sampler_that_does_not_obey_is_caught(script):
    run = session("one\ntwo", script, [Span(0, 3)], obeys=False)
    with pytest.raises(DllmError, match="Obedient changed text that it was told to leave"):
        run.finish()


LONG = "".join(f"red green {'blue ' * (n % 3)}\n" for n in range(40))


def test_a_window_with_an_instruction_leaves_room_for_both():
    tokenizer = words().__class__(tokenizer_object=words().backend_tokenizer, mask_token="[MASK]")
    tokenizer.chat_template = "{% for m in messages %}one {{ m['content'] }} two{% endfor %}"
    region = [line_span(LONG, 20, 20, flag="--lines")]
    layout = command.laid_out(model(tokenizer, 64), LONG, region, [], "green", named=True)
    assert tokenizer.decode(layout.prefix).startswith("one green red green")
    assert 20 < len(layout.row) <= 64
    assert layout.row[-len(layout.draft.ids) :] == layout.prefix[-len(layout.draft.ids) - 1 : -1]
    with pytest.raises(PromptError, match="name fewer lines with --lines"):
        command.laid_out(model(tokenizer, 64), LONG, [Span(0, len(LONG))], [], "green", named=True)


def test_an_instruction_without_a_template_is_refused():
    with pytest.raises(PromptError, match="no chat template; leave it out"):
        command.laid_out(model(words()), "red", [Span(0, 3)], [], "Fix it.", named=False)


def test_a_mask_in_the_file_is_refused():
    with pytest.raises(PromptError, match="holds the model's mask token"):
        command.laid_out(model(words()), "red [MASK]", [Span(0, 3)], [], None, named=False)


@pytest.fixture
def dllm_edit(monkeypatch, tmp_path):
    """Run the command with a sampler that makes the edits of a script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dllm_core.cli.edit.choose_sampler", lambda name: "scripted/scripted")
    monkeypatch.setattr("dllm_core.cli.edit.choose_model", lambda name, plugin: "scripted")

    def call(script, *arguments: str, context: int | None = None):
        denoiser = model(words(), context)
        generation = SimpleNamespace(denoiser=denoiser, sampler=Obedient(denoiser, script), about={"model": "scripted"})
        monkeypatch.setattr(command, "load_model", lambda *_, **__: generation)
        return CliRunner().invoke(root, ["edit", *arguments], catch_exceptions=False)

    return call


def test_the_command_edits_a_file_there_and_back(dllm_edit, tmp_path):
    before, after = b"one\r\n  red\t(blue)\r\ntwo", b"one\r\n  green\t(blue one)\r\ntwo"
    file = tmp_path / "a b.txt"
    file.write_bytes(before)
    file.chmod(0o755)
    (tmp_path / "link.txt").symlink_to(file)
    script = [("substitute", 2, GREEN), ("insert", 4, ONE), ("insert", -1, CLOSE)]
    done = dllm_edit(script, "a b.txt", "--lines", "2", "--log", "log")
    assert file.read_bytes() == before
    subprocess.run(["git", "apply", "-"], input=done.stdout_bytes, check=True)
    assert file.read_bytes() == after
    assert dllm_edit([], "a b.txt", "--undo", "log", "--write").exit_code == 0
    assert file.read_bytes() == before
    record = json.loads(dllm_edit(script, "link.txt", "--lines", "2", "--write", "--output", "json").stdout)
    assert file.read_bytes() == after == record["text"].encode()
    assert (record["edits"], record["net_edits"], record["churn"], record["unchanged_outside"]) == (2, 2, 1.0, 1.0)
    assert [edit["kind"] for edit in record["log"]] == ["substitute", "insert"]
    assert os.stat(file).st_mode & 0o777 == 0o755
    assert (tmp_path / "link.txt").is_symlink()


def test_the_command_says_which_lines_of_a_long_file_it_sees(dllm_edit, tmp_path):
    (tmp_path / "long.txt").write_text(LONG)
    done = dllm_edit(
        [("delete", at, 0) for at in reversed(range(32))], "long.txt", "--lines", "20", "--output", "file", context=32
    )
    assert "it sees lines" in done.stderr
    lines, given = done.stdout.splitlines(), LONG.splitlines()
    assert lines[:19] == given[:19]
    assert lines[19].strip() == ""
    assert lines[20:] == given[20:]


def test_the_command_shows_where_it_would_edit(dllm_edit, tmp_path):
    (tmp_path / "f.txt").write_text("one\nred blue\n")
    record = json.loads(dllm_edit([], "f.txt", "--suspicion", "--lines", "2", "--output", "json").stdout)
    assert [(each["text"], each["change"]) for each in record["tokens"]] == [("one", 0), ("red", 0.75), ("blue", 0.75)]
    shown = dllm_edit([], "f.txt", "--suspicion").stdout
    assert "red blue" in shown
    assert "line 2: 0.75" in shown
