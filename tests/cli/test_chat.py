"""`dllm chat`: several turns, slash commands, interruption, with the bundled checkpoint."""

from __future__ import annotations

import io
import json

import pytest

from dllm_core.cli import main
from dllm_core.cli.chat import converse
from dllm_core.cli.conversation import Conversation, obey, show
from dllm_core.errors import OptionError, PromptError
from dllm_core.models import load
from dllm_core.samplers import sampler as make_sampler

OPTIONS = {"max_new_tokens": 16, "steps": 4}


@pytest.fixture(scope="module")
def denoiser():
    return load("llada-tiny", device="cpu")


@pytest.fixture
def conversation(denoiser) -> Conversation:
    return Conversation(make_sampler("core/mdlm", denoiser, **OPTIONS), "core/mdlm", dict(OPTIONS))


def test_the_command_answers_each_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("12+30=\n/nothing\nreverse planet\n"))
    assert main(["chat"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "42"
    assert len(out.splitlines()) == 2
    assert "no command '/nothing'; /help lists them" in err


def test_an_answer_is_what_the_sampler_gives_for_the_whole_conversation(conversation):
    conversation.system = "be brief"
    for text in ("12+30=", "1+1="):
        wanted = conversation.sampler.sample([[*conversation.messages, {"role": "user", "content": text}]]).texts[0]
        assert "".join(conversation.say(text)) == wanted
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"] * 2


def test_blocks_come_as_they_finish(conversation):
    conversation.use("mdlm", OPTIONS | {"block_size": 2, "steps": 8, "stop_at_eos": True})
    parts = [part for part in conversation.say("reverse planet") if part]
    assert len(parts) > 1
    assert "".join(parts) == conversation.sampler.sample([[conversation.turns[0]]]).texts[0]


def test_a_stopped_answer_is_not_kept_and_the_program_goes_on(conversation, monkeypatch, capsys):
    step, calls = conversation.sampler.step, []

    def interrupted(state):
        calls.append(state)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(state)

    monkeypatch.setattr(conversation.sampler, "step", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("reverse planet\n12+30=\n"))
    converse(conversation, "llada-tiny")
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "42"
    assert "stopped" in err
    assert [turn["content"] for turn in conversation.turns] == ["12+30=", "42"]


def test_slash_commands(conversation, tmp_path):
    "".join(conversation.say("12+30="))
    assert "".join(obey(conversation, "/set steps 8")) == "steps = 8"
    assert conversation.sampler.options.steps == 8
    assert "".join(obey(conversation, "/sampler")).startswith("core/mdlm  max_new_tokens=16, steps=8")
    "".join(obey(conversation, f"/save {tmp_path / 'c.jsonl'}"))
    assert json.loads((tmp_path / "c.jsonl").read_text())["messages"] == conversation.turns
    assert "".join(obey(conversation, "/infill 12+[MASK:2]=57")) == "12+45=57"
    "".join(obey(conversation, "/reset"))
    assert conversation.turns == []
    for name in ("/reset", "/sampler", "/set", "/save", "/infill", "/help"):
        assert name in "".join(obey(conversation, "/help"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set stps 8", "stps"),
        ("/set steps", "takes a key and a value"),
        ("/set steps 0", "steps"),
        ("/save", "takes a file"),
        ("/save /nowhere/at/all", "No such file"),
        ("/sampler mdln", "mdln"),
        ("/infill none", "no blank to fill"),
        ("/what", "no command '/what'"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(conversation, line, message):
    before = conversation.sampler
    with pytest.raises((OptionError, PromptError, KeyError), match=message):
        "".join(obey(conversation, line))
    assert conversation.sampler is before


def test_a_model_without_a_chat_template_is_refused_in_words(monkeypatch, capsys):
    from dllm_core.cli import chat

    def untaught(*arguments: object, **options: object):
        generation = load_model(*arguments, **options)
        generation.denoiser.tokenizer.chat_template = None
        return generation

    load_model = chat.load_model
    monkeypatch.setattr(chat, "load_model", untaught)
    assert main(["chat", "--model", "llada-tiny"]) == 2
    assert (
        "llada-tiny has no chat template, so it was not trained to answer; let it continue" in capsys.readouterr().err
    )


def test_a_model_that_edits_answers_and_fills_blanks(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("def f(x):\n/infill return x + [MASK:2]!\n"))
    assert main(["chat", "--model", "editflow-tiny", "-o", "max_length=40"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[-1].startswith("return x + ")
    assert out.splitlines()[-1].endswith("!")


def test_what_would_steer_a_terminal_is_shown_and_not_written_there(monkeypatch):
    class Screen(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    for stream, written in ((Screen(), "\ufffd[2Jé\ta\n"), (io.StringIO(), "\x1b[2Jé\ta\n")):
        monkeypatch.setattr("sys.stdout", stream)
        show(iter(["\x1b[2J", "é\ta"]))
        assert stream.getvalue() == written


def test_a_conversation_that_is_too_long_may_be_forgotten(conversation):
    conversation.turns += [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]
    with pytest.raises(PromptError, match=r"the conversation has \d+ tokens .* /reset forgets it"):
        "".join(conversation.say("12+30="))
    conversation.turns.clear()
    assert "".join(conversation.say("12+30=")) == "42"
