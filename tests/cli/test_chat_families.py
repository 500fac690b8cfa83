"""`dllm chat` with every family that has a chat template, each with a small model of random weights."""

from __future__ import annotations

import io

import pytest

from dllm_core.cli import main
from dllm_core.conformance import AdapterTests
from tests.families import adapter_suites, name_of

CHATTING = [suite for suite in adapter_suites() if suite().has_chat_template]
FIRST = {name_of(suite).split("/")[0]: suite for suite in reversed(CHATTING)}  # of each plugin
CONTEXTS = ("max_position_embeddings", "max_sequence_length", "n_positions")  # what configurations call it
LINES = "hello\n/set max_new_tokens 3\nand again\n/infill a[MASK:2]b\n/reset\n/sampler\n"


def test_several_families_chat():
    assert {name_of(suite).split("/")[0] for suite in CHATTING} >= {"a2d", "bert", "dream", "llada", "editflow"}


def with_room(suite: type) -> AdapterTests:
    """The suite, whose models have room for a conversation."""

    class Roomy(suite):
        def tiny_config(self):
            config = super().tiny_config()
            for name in CONTEXTS:
                if hasattr(config, name):
                    setattr(config, name, 256)
            return config

    return Roomy()


@pytest.mark.parametrize(
    "suite",
    [pytest.param(one, marks=() if one in FIRST.values() else pytest.mark.slow) for one in CHATTING],
    ids=map(name_of, CHATTING),
)
def test_a_family_chats(suite, monkeypatch, capsys):
    own = with_room(suite)
    monkeypatch.setattr("sys.stdin", io.StringIO(LINES))
    with own.saved(own.model()) as folder:
        assert main(["chat", "--model", str(folder), "--device", "cpu", "-o", "max_new_tokens=2"]) == 0
    out, err = capsys.readouterr()
    assert "Error" not in err
    assert "max_new_tokens = 3\n" in out
    assert "The conversation starts anew.\n" in out
    assert out.rstrip().endswith("max_new_tokens=3")
    assert [line for line in out.splitlines() if line.startswith("a")][-1].endswith("b")
