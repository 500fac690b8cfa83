"""`dllm bench`: the grid, what is counted, what is written, and what is refused before any work."""

from __future__ import annotations

import builtins
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

import dllm_core as dllm
from dllm_core.cli import main
from dllm_core.cli.bench import EPILOG
from dllm_core.cli.bench_table import columns_for, header, table
from dllm_core.errors import OptionError
from dllm_core.evaluation.benchmark import Benchmark, Exercise, Measurement
from dllm_core.evaluation.grid import Cell, grid, parse_varied
from dllm_core.samplers.output import SampleStats


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]):
    """Call ``dllm bench``: (exit code, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["bench", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


QUICK = ("--count", "3", "--repeats", "1")


def test_varied_values_are_read_as_what_they_are() -> None:
    assert parse_varied(["cache=none,dual", "threshold=0.8,0.9", "block_size=null,8", "steps=[1, 2]"]) == {
        "cache": ["none", "dual"],
        "threshold": [0.8, 0.9],
        "block_size": [None, 8],
        "steps": [1, 2],
    }


@pytest.mark.parametrize("texts", [["steps"], ["steps="], ["steps=1", "steps=2"]])
def test_varied_values_that_cannot_be_read(texts: list[str]) -> None:
    with pytest.raises(OptionError, match="steps"):
        parse_varied(texts)


def test_an_option_is_left_out_where_there_is_none_and_equal_cells_are_one() -> None:
    cells = grid(["mdlm"], {"seed": 1}, {"commit": ["quota", "threshold"], "threshold": [0.7, 0.9]})
    assert [cell.label for cell in cells] == [
        "commit=quota",
        "commit=threshold threshold=0.7",
        "commit=threshold threshold=0.9",
    ]
    assert "threshold" not in cells[0].options


def test_a_preset_keeps_its_own_options_where_they_fit() -> None:
    with_rule, other = grid(["fastdllm/parallel"], {}, {"commit": ["threshold", "quota"]})
    assert with_rule.options["threshold"] == 0.9
    assert "threshold" not in other.options


def test_counts_and_answers_are_those_of_the_sampler() -> None:
    denoiser = dllm.load("llada-tiny")
    cells = grid(["mdlm"], {"max_new_tokens": 16}, {"steps": [4, 16]})
    chat = [{"role": "user", "content": "reverse matrix"}]
    ids = denoiser.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    benchmark = Benchmark(denoiser, cells, [Exercise(ids, answer="xirtam"), Exercise(ids, answer="no")], batch_size=1)
    list(benchmark.run(2))
    for cell, each in zip(cells, benchmark.measurements, strict=True):
        alone = dllm.sampler("mdlm", denoiser, max_new_tokens=16, steps=cell.options["steps"]).sample(ids)
        assert each.stats.forward_passes == 2 * alone.stats.forward_passes  # of one repeat, over both prompts
        assert each.stats.logit_rows == 2 * alone.stats.logit_rows
        assert each.texts == [alone.texts[0]] * 2
        assert (each.correct, each.answered, len(each.seconds)) == (1, 2, 2)
        assert each.stats.seconds == pytest.approx(sum(each.seconds) / 2)


def test_what_a_model_cannot_do_is_left_out_and_all_of_it_is_an_error() -> None:
    denoiser = dllm.load("llada-tiny")
    good, bad = (
        Cell(sampler="core/mdlm", label="good"),
        Cell(sampler="core/mdlm", options={"suppress_tokens": [10**6]}, label="bad"),
    )
    exercise = Exercise([20, 21])
    benchmark = Benchmark(denoiser, [good, bad], [exercise])
    assert [each.cell for each in benchmark.measurements] == [good]
    assert "token ids run from" in benchmark.left_out[0].reason
    with pytest.raises(OptionError, match="none of these samplers: suppress_tokens"):
        Benchmark(denoiser, [bad], [exercise])


def test_the_results_file_says_how_it_came_about(bench, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "results"
    code, stdout, _ = bench(*QUICK, "--vary", "steps=4,32", "--json", "--output", out, "--plot", tmp_path / "p.html")
    report = json.loads(stdout)
    assert code == 0
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == report
    assert report["machine"]["versions"]["torch"] == torch.__version__
    assert [row["options"]["steps"] for row in report["results"]] == [4, 32]
    assert report["results"][1]["answered"] == 3
    assert {"positions_processed", "logit_rows", "forwards_per_second"} <= report["results"][0]["stats"].keys()
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "steps=32" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "https://matplotlib.org", ""
    ).replace("http://creativecommons.org", "")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "p.html", "results", "results.json"]


def test_prompts_of_a_file_without_answers(bench, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "reverse planet"}\n{"infill": "58+[MASK:2]=143"}\n', encoding="utf-8")
    code, stdout, _ = bench(*QUICK, "--prompts-file", file, "--vary", "steps=4,8", "--plot", tmp_path / "p.png")
    assert code == 0
    assert "right" not in stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_left_out_is_said_in_a_line_of_its_own(bench) -> None:
    code, stdout, stderr = bench(*QUICK, "--sampler", "bd3lm", "--vary", "cache=none,dual", "--json")
    assert code == 0
    assert [each["label"] for each in json.loads(stdout)["left_out"]] == ["cache=dual"]
    (line,) = stderr.splitlines()
    assert line.startswith("left out cache=dual: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sampler", "mdml"], "Did you mean"),
        (["--vary", "commit=quoat"], "quoat"),
        (["--vary", "tempreture=0,1"], "Did you mean 'temperature'"),
        (["--vary", "temperature=-1"], "temperature must be at least 0"),
        (["-o", "threshold=1.5", "--vary", "commit=threshold"], "threshold"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--plot", "picture.pdf"], ".png, .svg, .html"),
        (["--plot", "no/folder/p.png"], "cannot be written"),
        (["--prompts-file", "none.jsonl"], "none.jsonl"),
        (["--model", "."], "--prompts-file"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(bench, monkeypatch, tmp_path, arguments, said) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("dllm_core.models.load", refuse)
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = bench(*arguments)
    assert code == 2
    assert stdout == ""
    assert said in stderr
    assert stderr.count("\n") == 1
    assert list(tmp_path.rglob("*")) == []


def test_an_answer_that_is_no_text(bench, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "1+1=", "answer": 2}\n', encoding="utf-8")
    assert "prompts.jsonl, line 1: an answer must be text, got 2" in bench("--prompts-file", file)[2]


def test_without_matplotlib_the_error_says_how_to_get_it(bench, monkeypatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **named: object) -> object:
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    code, _, stderr = bench("--plot", "p.png")
    assert code == 1
    assert "pip install 'dllm-core[plots]'" in stderr


def test_counts_are_shown_where_there_is_room() -> None:
    denoiser = dllm.load("llada-tiny")
    benchmark = Benchmark(denoiser, grid(["mdlm"], {"max_new_tokens": 4}, {"steps": [1, 4]}), [Exercise([20, 21])])
    list(benchmark.run(1))
    narrow, wide = (table(benchmark.measurements, width) for width in (80, 120))
    assert "positions" not in [column.header for column in narrow.columns]
    assert [column.header for column in wide.columns] == header(benchmark.measurements)


def test_a_narrow_terminal_keeps_settings_whole_and_drops_columns() -> None:
    labels = [f"fastdllm/{name} cache=delayed commit=threshold" for name in ("fast", "wino")]
    found = [
        Measurement(Cell(sampler="core/mdlm", label=label), {}, SampleStats(tokens=9, seconds=1.0), answered=1)
        for label in labels
    ]
    shown = {width: list(columns_for(found, width)) for width in (150, 120, 80, 60, 40)}
    assert shown[150] == header(found)[2:]
    assert shown[120] == shown[80] == ["tokens/s", "tok/fwd", "fwd/s", "ratio", "right"]
    assert shown[40] == ["tokens/s", "right"]
    for width in shown:
        with (console := Console(width=width, file=io.StringIO())).capture() as captured:
            console.print(table(found, width))
        lines = captured.get().splitlines()
        assert all(len(line) <= width for line in lines)
        words = {word for line in lines for word in line.split()}
        assert {word for label in labels for word in label.split()} | {"1", "2"} <= words


def test_the_examples_of_the_help_run(bench, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    examples = [
        line.split("dllm bench", 1)[1].split("  ")[0].split() for line in EPILOG.splitlines() if "  dllm bench" in line
    ]
    for words in examples:
        if "FOLDER" not in words:
            assert bench(*words, *(() if "--count" in words else ("--count", "2")), "--repeats", "1")[0] == 0, words
    assert (tmp_path / "steps.png").exists()
