"""`dllm run`, end to end on a small random checkpoint: what it prints, and what it says when something is wrong."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dllm_core as dllm
from dllm_core.cli import main
from dllm_core.cli.prompts import expand_blanks, parse_line
from dllm_core.cli.run import wants_live
from dllm_core.errors import DataError, OptionError, PromptError

CONTEXT = 192
MASK = "<|mdm_mask|>"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaDA checkpoint with random weights and the character tokenizer of the bundled one."""
    from dllm_llada import LLaDAConfig, LLaDAModelLM
    from dllm_llada.tiny.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("random-llada")
    tokenizer = build_tokenizer()
    config = LLaDAConfig(
        vocab_size=len(tokenizer),
        embedding_size=len(tokenizer),
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        mlp_hidden_size=48,
        max_sequence_length=CONTEXT,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LLaDAModelLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    """Call ``dllm run`` with that checkpoint: (exit code, stdout, stderr)."""

    def call(*arguments: str | Path, model: str | Path | None = checkpoint) -> tuple[int, str, str]:
        given = [] if model is None else ["--model", str(model)]
        code = main(["run", *map(str, arguments), *given])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def completion(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    """What the library gives for a prompt, without the command line."""

    def complete(prompt: object, **options: object) -> str:
        text = dllm.sampler("mdlm", dllm.load(checkpoint), **options).sample(prompt).texts[0]
        capsys.readouterr()  # the progress bar of loading
        return text

    return complete


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), encoding="utf-8")
    return path


# ---- what it prints


def test_stdout_is_exactly_the_completion(run, completion):
    wanted = completion([{"role": "user", "content": "hello"}], max_new_tokens=12)
    assert run("hello", "--max-new-tokens", "12") == (0, wanted + "\n", "")


def test_raw_leaves_out_the_chat_template(run, completion):
    wanted = completion("hello", max_new_tokens=12)
    assert run("hello", "--raw", "--max-new-tokens", "12")[1] == wanted + "\n"
    assert run("hello", "--max-new-tokens", "12")[1] != wanted + "\n"


def test_a_system_message_comes_first_in_the_chat(run, completion):
    chat = [{"role": "system", "content": "be terse"}, {"role": "user", "content": "hello"}]
    wanted = completion(chat, max_new_tokens=12)
    assert run("hello", "--system", "be terse", "--max-new-tokens", "12")[1] == wanted + "\n"


def test_flags_and_assignments_reach_the_sampler(run):
    flags = ["--max-new-tokens", "12", "--steps", "4", "--block-size", "6", "--temperature", "0.5", "--seed", "3"]
    _, out, _ = run("hello", *flags, "-o", "confidence=margin", "-o", "top_k=5", "--json")
    record = json.loads(out)
    expected = {"max_new_tokens": 12, "steps": 4, "block_size": 6, "temperature": 0.5, "seed": 3, "top_k": 5}
    assert record["options"] == record["options"] | expected | {"confidence": "margin"}
    assert record["seed"] == 3
    assert record["stats"]["forward_passes"] == 4


def test_the_seed_decides_what_is_drawn(run):
    drawn = [run("hello", "--max-new-tokens", "16", "--temperature", "1", "--seed", s)[1] for s in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]


def test_json_is_one_object_with_counts_and_options(run, checkpoint):
    code, out, err = run("hello", "--json", "--max-new-tokens", "12")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert record["prompt"] == "hello"
    assert record["completion_tokens"] == record["stats"]["tokens"] <= 12
    assert record["prompt_tokens"] > len("hello")  # the template's tokens count
    assert record["model"] == str(checkpoint)
    assert record["sampler"] == "core/mdlm"
    assert record["options"]["schedule"] == "linear"


def test_standard_input_is_one_prompt(run, monkeypatch):
    typed = io.TextIOWrapper(io.BytesIO("two\nlines é\n".encode()), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    record = json.loads(run("-", "--json", "--max-new-tokens", "4")[1])
    assert record["prompt"] == "two\nlines é"


def test_blanks_are_filled_and_the_rest_stays(run):
    _, out, _ = run("--infill", "12+[MASK:2]=57; a[MASK]c", "--json")
    record = json.loads(out)
    text = record["text"]
    assert text.startswith("12+")
    assert "=57; a" in text
    assert text.endswith("c")
    assert record["completion_tokens"] == record["stats"]["tokens"] == 3
    assert record["infill"] == "12+[MASK:2]=57; a[MASK]c"
    assert MASK not in text


def test_the_mask_token_itself_marks_a_blank_too(run):
    assert run("--infill", f"1{MASK}3")[1] == run("--infill", "1[MASK]3")[1]


def test_a_prompts_file_keeps_order_and_extra_keys(run, tmp_path):
    chat = [{"role": "user", "content": "sort 321"}]
    lines = [{"prompt": "one", "id": 7}, {"infill": "1[MASK]3"}, {"messages": chat}, "", {"prompt": "two words"}]
    _, out, _ = run("--prompts-file", write_lines(tmp_path / "p.jsonl", *lines), "--json", "--max-new-tokens", "8")
    records = [json.loads(line) for line in out.splitlines()]
    assert [r.get("prompt") or r.get("infill") or r["messages"] for r in records] == [
        "one",
        "1[MASK]3",
        chat,
        "two words",
    ]
    assert records[0]["extra"] == {"id": 7}


@pytest.mark.parametrize("size", ["1", "2", "8"])
def test_the_batch_size_changes_no_text(run, tmp_path, size):
    file = write_lines(tmp_path / "p.jsonl", *({"prompt": "a" * n} for n in (1, 20, 5)))
    _, out, _ = run("--prompts-file", file, "--json", "--max-new-tokens", "8", "--batch-size", size)
    alone = [json.loads(run("a" * n, "--json", "--max-new-tokens", "8")[1])["text"] for n in (1, 20, 5)]
    assert [json.loads(line)["text"] for line in out.splitlines()] == alone


def test_texts_of_several_prompts_are_apart(run, tmp_path):
    file = write_lines(tmp_path / "p.jsonl", {"prompt": "one"}, {"prompt": "two"})
    _, out, _ = run("--prompts-file", file, "--max-new-tokens", "4")
    alone = [run(prompt, "--max-new-tokens", "4")[1] for prompt in ("one", "two")]
    assert out == "\n".join(alone)


def test_output_goes_to_the_file_and_nothing_else_remains(run, tmp_path):
    file = tmp_path / "out.txt"
    code, out, _ = run("hello", "--max-new-tokens", "8", "--output", file)
    assert (code, out) == (0, "")
    assert file.read_text() == run("hello", "--max-new-tokens", "8")[1]
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_a_failed_run_leaves_an_older_output_alone(run, tmp_path):
    file = tmp_path / "out.txt"
    file.write_text("older")
    assert run("x" * CONTEXT, "--output", file)[0] == 2
    assert file.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


# ---- no prompt: the bundled checkpoint at work


@pytest.fixture
def demo_plugin(checkpoint, distributions, monkeypatch):
    """The random checkpoint as the bundled one of a plugin, with demo prompts."""
    from dllm_core import plugins

    prompts = ("reverse planet", "12+[MASK:2]=57")
    source = f"""
    @hookimpl
    def dllm_model_adapters():
        shipped = BundledCheckpoint(
            name="demo", summary="reverses words", resource="demo_files:c", demo_prompts={prompts!r}, max_new_tokens=9
        )
        yield ModelAdapterSpec(name="demo", summary="s", source="original", model_types=("demo",),
                               target="dllm_llada.adapter:LLaDAAdapter", bundled=(shipped,))

    @hookimpl
    def dllm_samplers():
        yield SamplerSpec(name="fast", summary="s", source="original", target="dllm_core.samplers.masked:MDLMSampler",
                          defaults={{"steps": 2}})
    """
    entry_point = distributions("aaa", source)
    package = Path(sys.path[0]) / "demo_files"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "c").symlink_to(checkpoint, target_is_directory=True)
    llada = next(p for p in __import__("importlib").metadata.entry_points(group="dllm") if p.name == "llada")
    host = plugins.load_plugins(entry_points=[entry_point, llada])
    monkeypatch.setattr(plugins, "plugin_host", lambda: host)
    monkeypatch.setattr("dllm_core.registry.plugin_host", lambda: host)
    return prompts


def test_without_arguments_the_first_bundled_model_shows_its_prompts(run, demo_plugin):
    code, out, err = run("--max-new-tokens", "8", model=None)
    assert code == 0
    prompts = [line[2:] for line in out.splitlines() if line.startswith("❯ ")]
    assert prompts == ["reverse planet", "12+[MASK:2]=57"]
    assert out.splitlines()[-2].startswith("12+")
    assert err.splitlines()[0] == "demo: reverses words"
    assert "dllm run --help" in err  # what to try next


def test_the_demo_as_json(run, demo_plugin):
    _, out, err = run("--json", "--max-new-tokens", "8", model=None)
    assert [json.loads(line)["model"] for line in out.splitlines()] == ["demo", "demo"]
    assert err == ""


def test_a_bundled_checkpoint_says_how_long_its_completions_are(run, demo_plugin, checkpoint):
    def length(*arguments, model=None):
        return json.loads(run("hello", "--json", *arguments, model=model)[1])["options"]["max_new_tokens"]

    assert length() == 9
    assert length("--max-new-tokens", "5") == 5
    assert length("-o", "max_length=100") is None
    assert length(model="aaa/demo") == 9
    assert length(model=checkpoint) is None


def test_a_plugin_with_only_a_sampler_runs_on_another_ones_checkpoint(run, demo_plugin):
    record = json.loads(run("hello", "--plugin", "core", "--json", model=None)[1])
    assert (record["model"], record["sampler"]) == ("demo", "core/mdlm")


def test_a_plugin_brings_its_checkpoint_and_its_sampler(run, demo_plugin):
    record = json.loads(run("hello", "--plugin", "aaa", "--json", "--max-new-tokens", "8", model=None)[1])
    assert (record["model"], record["sampler"], record["options"]["steps"]) == ("demo", "aaa/fast", 2)
    record = json.loads(run("hello", "--plugin", "aaa", "--sampler", "mdlm", "--json", model=None)[1])
    assert record["sampler"] == "core/mdlm"


# ---- what it says when something is wrong: one line, no traceback


def said(result: tuple[int, str, str], code: int) -> str:
    """The one line on stderr of a run that failed with this exit code and printed nothing."""
    assert result[:2] == (code, "")
    (line,) = result[2].splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hi", "--steps", "0"], ["--steps", "at least 1", "0"]),
        (["hi", "--block-size", "0"], ["--block-size", "at least 1", "0"]),
        (["hi", "--max-new-tokens", "0"], ["--max-new-tokens", "at least 1"]),
        (["hi", "--temperature", "-1"], ["--temperature", "at least 0", "-1"]),
        (["hi", "--temperature", "nan"], ["--temperature", "at least 0", "nan"]),
        (["hi", "--batch-size", "0"], ["--batch-size", "at least 1"]),
        (["hi", "-o", "stepz=3"], ["stepz", "Did you mean 'steps'"]),
        (["hi", "-o", "steps"], ["steps", "name=value"]),
        (["hi", "-o", "steps=2", "--steps", "3"], ["--steps", "same option"]),
        (["hi", "-o", "confidence=high"], ["confidence", "margin", "high"]),
        (["hi", "--sampler", "mdml"], ["mdml", "Did you mean 'mdlm'"]),
        (["hi", "--plugin", "lada"], ["lada", "Did you mean 'llada'"]),
        (["hi", "--device", "gpu"], ["gpu", "cpu"]),
        (["hi", "--dtype", "float8"], ["float8", "bfloat16"]),
        ([""], ["empty"]),
        (["  \n "], ["empty"]),
        (["x" * 300], ["304 tokens", "context"]),  # longer than the tokenizer's own limit, which warns
        (["x" * CONTEXT], [str(CONTEXT), "context", "shorten the prompt"]),
        ([f"1{MASK}3"], ["the prompt", "mask token", "--infill"]),
        (["--infill", "no blank"], ["no blank", "[MASK]"]),
        (["--infill", "a [MASK:0]"], ["[MASK:0]", "[MASK:1]"]),
        (["--infill"], ["--infill", "blanks"]),
        (["--infill", "a[MASK]", "--chat"], ["--chat"]),
        (["--infill", "a[MASK]", "--max-new-tokens", "3"], ["--max-new-tokens", "[MASK:5]"]),
        (["hi", "--system", "s", "--raw"], ["--system", "--raw"]),
        (["hi", "--live"], ["--live", "terminal"]),
        (["hi", "--prompts-file", "x.jsonl"], ["PROMPT", "--prompts-file"]),
        (["--prompts-file", "missing.jsonl"], ["missing.jsonl", "No such file"]),
        (["hi", "--output", "missing/folder/out"], ["missing/folder/out", "No such file"]),
    ],
)
def test_wrong_usage(run, arguments, words):
    line = said(run(*arguments), 2)
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"', ["not valid JSON"]),
        ('{"promt": "a"}', ["none of these", '{"prompt": "..."}']),
        ('["a"]', ["none of these"]),
        ('{"prompt": "a", "infill": "b"}', ["more than one"]),
        ('{"prompt": ""}', ["not empty"]),
        ('{"prompt": 3}', ["prompt", "text"]),
        ('{"messages": []}', ["messages", "list"]),
        ('{"messages": [{"role": "user"}]}', ["messages", "content"]),
        (json.dumps({"prompt": MASK}), ["mask token", "--infill"]),
        (json.dumps({"infill": "no blank"}), ["no blank"]),
        (json.dumps({"prompt": "x" * CONTEXT}), ["context"]),
    ],
)
def test_a_broken_line_is_named_before_anything_is_generated(run, tmp_path, line, words):
    file = write_lines(tmp_path / "prompts.jsonl", {"prompt": "fine"}, "", line)
    said_line = said(run("--prompts-file", file), 2)
    assert f"{file}, line 3" in said_line
    assert [word for word in words if word not in said_line] == []


def test_an_empty_prompts_file(run, tmp_path):
    assert "holds no prompts" in said(run("--prompts-file", write_lines(tmp_path / "p.jsonl", "", " ")), 2)


def test_a_prompts_file_that_is_not_text(run, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in said(run("--prompts-file", file), 2)


def test_an_unknown_model(run):
    line = said(run("hi", model="llada-tinny"), 1)
    assert "llada-tinny" in line
    assert "llada-tiny" in line


def test_a_folder_without_config(run, tmp_path):
    assert "config.json" in said(run("hi", model=tmp_path), 1)


def test_a_model_type_that_no_plugin_serves(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    line = said(run("hi", model=tmp_path), 1)
    assert "'mamba'" in line
    assert "install" in line


def test_a_tokenizer_without_mask_token(run, checkpoint, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(checkpoint / name)
    plain = Tokenizer(models.WordLevel({"hi": 0, "?": 1}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="?").save_pretrained(tmp_path)
    assert "mask token" in said(run("hi", model=tmp_path), 1)


def test_no_plugin_ships_a_checkpoint(run, monkeypatch):
    monkeypatch.setattr("dllm_core.registry.bundled_checkpoints", list)
    line = said(run("hi", model=None), 1)
    assert "--model" in line


def test_a_model_without_demo_prompts_asks_for_a_prompt(run):
    assert "give a prompt" in said(run(), 2)


def test_wrong_usage_is_found_without_torch(tmp_path):
    """In one process: many wrong calls, and torch is not imported by any of them."""
    broken = write_lines(tmp_path / "p.jsonl", "{")
    calls = [
        ["run", "hi", "--steps", "0"],
        ["run", ""],
        ["run", "hi", "--sampler", "nothing"],
        ["run", "hi", "--plugin", "nothing"],
        ["run", "--prompts-file", str(broken)],
        ["run", "hi", "--live"],
        ["run", "hi", "-o", "steps"],
        ["run", "--help"],
    ]
    code = f"""
import sys
from dllm_core.cli import main
assert [main(call) for call in {calls!r}] == [2] * 7 + [0]
assert not {{"torch", "transformers", "numpy", "rich.live"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- on a terminal


@pytest.mark.parametrize(
    ("stdout", "stderr", "term", "given", "wanted"),
    [
        (True, True, "xterm", {}, True),
        (False, True, "xterm", {}, False),  # piped into a file or a program
        (True, False, "xterm", {}, False),
        (True, True, "dumb", {}, False),
        (True, True, "xterm", {"live": False}, False),
        (True, True, "xterm", {"as_json": True}, False),
        (False, True, "xterm", {"output": Path("out")}, True),
        (False, True, "xterm", {"live": True, "as_json": True}, True),
        (True, True, "dumb", {"live": True}, OptionError),
    ],
)
def test_the_live_view_is_for_people_who_watch(monkeypatch, stdout, stderr, term, given, wanted):
    arguments = SimpleNamespace(**({"live": None, "as_json": False, "output": None} | given))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: stdout))
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: stderr))
    monkeypatch.setenv("TERM", term)
    if wanted is OptionError:
        with pytest.raises(OptionError, match="--live"):
            wants_live(arguments)
    else:
        assert wants_live(arguments) is wanted


def test_on_a_terminal_the_canvas_is_drawn_and_the_text_remains(checkpoint, run):
    """A real process on a pseudo-terminal."""
    arguments = ["run", "hello", "--model", str(checkpoint), "--max-new-tokens", "12"]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", "OMP_NUM_THREADS": "1"}
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dllm_core", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        close_fds=True,
    )
    os.close(terminal)
    written = b""
    while True:
        try:
            read = os.read(controller, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not read:
            break
        written += read
    os.close(controller)
    assert process.wait() == 0
    shown = written.decode().replace("\r\n", "\n")
    text = run("hello", "--max-new-tokens", "12")[1]
    assert "❯ hello" in shown
    assert "░" in shown
    assert f"{text}\n" in shown  # the text, a blank line, and the counts
    assert "12 forward passes" in shown
    assert shown.count("\x1b[?25h") == shown.count("\x1b[?25l")  # the cursor is back


# ---- prompts


def test_blanks_expand_to_mask_tokens():
    assert expand_blanks("a[MASK]b[MASK:3]", "<m>", "x") == "a<m>b<m><m><m>"
    assert expand_blanks("a<m>b", "<m>", "x") == "a<m>b"
    with pytest.raises(PromptError, match="the prompt has no blank"):
        expand_blanks("[MASK:x]", "<m>", "the prompt")


def test_infill_reads_prompts_as_texts_with_blanks():
    assert parse_line('{"prompt": "a [MASK]"}', "line 1", infill=True).kind == "infill"
    with pytest.raises(DataError, match="a chat"):
        parse_line('{"messages": [{"role": "user", "content": "x"}]}', "line 1", infill=True)
