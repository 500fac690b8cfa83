"""`dllm edit` on the command line: what it refuses before it loads anything, and what it prints."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from dllm_core.cli import root
from dllm_core.editing.log import EditLog, Hunk, LogStep, digest, write_log

TEXT = "one\ntwo\nthree\n"


def run(*arguments: object):
    return CliRunner().invoke(root, ["edit", *map(str, arguments)], catch_exceptions=True)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--lines", "2:9"], "lines 1 to 3"),
        (["--lines", "x"], "two line numbers"),
        (["--lines", "2", "--protect", "1:3"], "lie within --protect 1:3"),
        (["--protect", "1:2", "--protect", "2:3"], "overlap"),
        (["--protect", "4"], "--protect 4:4"),
        (["--output", "html"], "patch"),
        (["--max-edits", "-1"], "--max-edits"),
        (["--suspicion", "--write"], "changes nothing"),
        (["--suspicion", "--undo", "x.log"], "exclude each other"),
        (["--replay", "x.log", "--log", "y.log"], "leave it out"),
        (["--undo", "none.log"], "none.log cannot be read"),
        (["--max-edits", "3", "-o", "max_edits=4"], "same option"),
        (["--sampler", "mdlm"], "does not edit"),
        (["--live"], "draws on the terminal"),
    ],
)
def test_what_does_not_go_together_is_refused(file, arguments, named):
    done = run(file, *arguments)
    assert named in str(done.exception), done.output
    assert file.read_text() == TEXT


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"", "empty"), (b"a\0b", "binary"), (b"caf\xe9\n", "UTF-8: byte 3 \\(0xe9\\)")],
)
def test_what_is_no_text_is_refused(tmp_path, content, named):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    done = run(path)
    with pytest.raises(type(done.exception), match=named):
        raise done.exception


def test_a_missing_file_is_named(tmp_path):
    assert "none.txt cannot be read" in str(run(tmp_path / "none.txt").exception)


@pytest.fixture
def log(file):
    after = "one\nTWO\nthree\n"
    steps = [LogStep(0, [], [Hunk(4, "two", "TWO")])]
    path = file.with_suffix(".log")
    with path.open("wb") as stream:
        write_log(EditLog(digest(TEXT), digest(after), {}, steps), stream)
    return path


def test_a_log_is_replayed_and_taken_back(file, log, monkeypatch):
    monkeypatch.chdir(file.parent)
    done = run("a.txt", "--replay", log)
    assert done.output == "--- a/a.txt\n+++ b/a.txt\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n"
    assert file.read_text() == TEXT
    assert json.loads(run(file, "--replay", log, "--output", "json", "--write").output)["changed"] is True
    assert file.read_text() == "one\nTWO\nthree\n"
    assert run(file, "--undo", log, "--output", "file").output == TEXT
    assert "not the text" in str(run(file, "--replay", log).exception)
    assert run(file, "--undo", log, "--write").exit_code == 0
    assert file.read_bytes() == TEXT.encode()
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.log", "a.txt"]
