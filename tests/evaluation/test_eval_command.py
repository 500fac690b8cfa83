"""`dllm eval` as a user meets it, on the bundled checkpoint and on data in local files; nothing asks the network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

import datasets

from dllm_core.cli import main
from dllm_core.errors import DataError, OptionError
from dllm_core.evaluation.plan import check_family, chosen, parse_preset, read_preset
from dllm_core.evaluation.tasks import local_data, local_files

QA = """
task: acme_qa
dataset_path: acme/questions
dataset_name: main
output_type: generate_until
test_split: test
num_fewshot: 0
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0, chat: true}
"""
CHOICE = """
task: acme_choice
dataset_path: acme/choices
output_type: multiple_choice
test_split: test
num_fewshot: 0
doc_to_text: "{{question}}"
doc_to_choice: options
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""

ENDINGS = """
task: acme_endings
dataset_path: acme/endings
output_type: loglikelihood
test_split: test
num_fewshot: 0
doc_to_text: "{{question}}"
doc_to_target: "{{ending}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in (("qa", QA), ("choice", CHOICE)):
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    rows = [{"question": f"reverse {word}", "answer": word[::-1]} for word in ("matrix", "guitar", "planet")]
    write(folder / "questions" / "main" / "test.jsonl", rows)
    choices = [{"question": "28+55=", "options": ["83", "84"], "label": 0}]
    write(folder / "choices" / "test.jsonl", choices)
    return folder


def write(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main(["eval", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def settled(file: Path) -> dict:
    """What must not change from run to run; the commit may, where somebody works while the test runs."""
    return {name: value for name, value in json.loads(file.read_text()).items() if name not in ("timing", "commit")}


def test_results_say_what_they_are_made_of(capsys, tasks, data, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = run(
        capsys, "--tasks", "acme_qa,acme_choice", "--include", tasks, "--data-dir", data, "--mc-num", 7,
        "--output", out, "--log-samples", "--batch-size", 2, "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    assert "acme_qa" in printed
    report = json.loads((out / "results.json").read_text())
    qa, choice = report["tasks"]
    assert (qa["score"], choice["score"]) == (100.0, 100.0)
    assert (qa["documents"], qa["cost"]["requests"]) == ({"acme_qa": 3}, 3)
    assert 0 < qa["cost"]["forward_passes"] <= 2 * 8
    assert qa["settings"]["sampler"] == choice["settings"]["sampler"] == "mdlm"
    assert (qa["settings"]["options"]["confidence"], qa["settings"]["options"]["commit"]) == ("probability", "quota")
    assert choice["settings"]["likelihood"]["mc_num"] == 7
    assert choice["likelihood"]["mean"] == 0.0  # three tokens have seven sets of masks, all computed
    assert report["versions"]["lm_eval"]
    assert report["versions"]["plugins"]["llada"]
    assert report["settings"]["seeds"]["noise"] == 0
    assert {"name", "fingerprint", "dtype"} <= set(report["model"])
    rows = [json.loads(line) for line in (out / "samples-acme_qa.jsonl").read_text().splitlines()]
    assert [row["filtered_resps"] for row in rows] == [["xirtam"], ["ratiug"], ["tenalp"]]
    assert "<|start_header_id|>" in rows[0]["arguments"][0][0]


def test_estimates_are_told_with_their_errors(capsys, tasks, data, tmp_path):
    write(
        data / "longer" / "test.jsonl", [{"question": "reverse matrix", "options": ["xirtam", "guitars"], "label": 0}]
    )
    (tasks / "longer.yaml").write_text(
        CHOICE.replace("acme_choice", "acme_longer").replace("acme/choices", "acme/longer")
    )
    given = ("--tasks", "acme_longer", "--include", tasks, "--data-dir", data, "--mc-num", 4, "--device", "cpu")
    code, printed, _ = run(capsys, *given, "--output", tmp_path / "out")
    assert code == 0
    (task,) = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    assert 0 < task["likelihood"]["mean"] <= task["likelihood"]["largest"]
    line = (
        f"likelihoods ± {task['likelihood']['mean']:.3g} nats on average, {task['likelihood']['largest']:.3g} at most"
    )
    assert line in printed
    assert line in (tmp_path / "out" / "index.html").read_text(encoding="utf-8").replace("\\u00b1", "±")


def test_a_perplexity_is_no_share_and_nothing_is_printed_beside_the_json(capfd, tasks, data):
    (tasks / "endings.yaml").write_text(ENDINGS, encoding="utf-8")
    rows = [{"question": "28+55=", "ending": "83"}, {"question": "58+85=", "ending": "143"}]
    write(data / "endings" / "test.jsonl", rows)
    given = ("--tasks", "acme_endings", "--include", tasks, "--data-dir", data, "--device", "cpu", "--mc-num", 7)
    assert main(["eval", *map(str, given), "--json"]) == 0
    (task,) = json.loads(capfd.readouterr().out)["tasks"]
    assert task["metric"] == "perplexity,none"
    assert task["score"] == task["metrics"]["acme_endings"]["perplexity,none"] < 2  # it knows sums
    assert task["standard_error"] == task["metrics"]["acme_endings"]["perplexity_stderr,none"]
    assert main(["eval", *map(str, given)]) == 0
    told = capfd.readouterr()
    assert f"perplexity,none  {task['score']:.4g} " in told.out
    assert "%" not in told.out
    assert "it/s" not in told.err  # bars are for terminals


def test_a_file_that_cannot_be_read_is_named(capsys, tasks, data):
    file = data / "questions" / "main" / "test.jsonl"
    file.write_text('{"question": "reverse', encoding="utf-8")
    code, _, err = run(capsys, "--tasks", "acme_qa", "--include", tasks, "--data-dir", data)
    assert code == 2
    assert f"{file} cannot be read as jsonl" in err
    assert err.count("\n") == 1


def test_a_column_may_be_empty_in_one_split_and_hold_texts_in_another(tmp_path):
    for split, more in (("train", []), ("test", ["x"])):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"question": "q", "more": more}) + "\n")
    with local_data("acme", tmp_path.parent):
        splits = datasets.load_dataset(f"acme/{tmp_path.name}")
    assert (splits["train"][0]["more"], splits["test"][0]["more"]) == ([], ["x"])


def test_a_second_run_computes_nothing_and_finds_the_same(capsys, tasks, data, tmp_path):
    given = ("--tasks", "acme_qa", "--include", tasks, "--data-dir", data, "--output", tmp_path / "out")
    assert run(capsys, *given)[0] == 0
    file = tmp_path / "out" / "results.json"
    first = settled(file)
    file.unlink()
    assert run(capsys, *given)[0] == 0
    assert settled(file) == first
    timing = json.loads(file.read_text())["timing"]
    assert (timing["requests_found"], timing["requests_computed"]) == (3, 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing to evaluate"),
        (("--tasks", "a", "--limit", 0), "--limit must be at least 1"),
        (("--tasks", "a", "--log-samples"), "--output"),
        (("--tasks", "a", "--data-dir", "nowhere"), "nowhere is no folder"),
        (("--preset", "llada-tinny"), "Did you mean 'llada-tiny'?"),
        (("--preset", "llada-tiny", "--tasks", "sudokku"), "has no task 'sudokku'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(capsys, arguments, says):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_an_unknown_task_is_met_with_the_nearest_one(capsys):
    code, _, err = run(capsys, "--tasks", "llada_tiny_sudoko")
    assert code == 2
    assert "Did you mean 'llada_tiny_sudoku'?" in err


def test_missing_data_are_named_with_the_way_to_get_them(capsys, tasks, tmp_path):
    code, _, err = run(capsys, "--tasks", "acme_qa", "--include", tasks, "--data-dir", tmp_path)
    assert code == 2
    assert "'acme/questions' (main)" in err
    assert f"{tmp_path}/questions/main/test.jsonl" in err


def test_a_preset_for_another_family_is_refused():
    with pytest.raises(OptionError, match="is for llada, this model is of the family a2d"):
        check_family(read_preset("llada-tiny"), "a2d")


def test_a_dry_run_counts_requests_and_passes(capsys):
    given = ("--preset", "llada-tiny", "--tasks", "sudoku one-step,mirror confidence", "--limit", 120, "--dry-run")
    code, out, _ = run(capsys, *given, "--json")
    assert code == 0
    rows = {row["plan"]["label"]: row for row in json.loads(out)["tasks"]}
    assert rows["sudoku one-step"]["requests"] == 120
    assert rows["sudoku one-step"]["forward_passes"] == 3  # batches of 50, one step each
    assert rows["mirror confidence"]["forward_passes"] == 3 * 32
    assert rows["sudoku one-step"]["plan"]["published"] == {"readme": 73.4}


def test_a_dry_run_says_which_data_are_missing(capsys, tasks):
    code, out, _ = run(capsys, "--tasks", "acme_qa", "--include", tasks, "--dry-run")
    assert code == 0
    assert "acme/questions" in out


def test_the_readme_score_comes_out_of_the_preset(capsys):
    given = ("--preset", "llada-tiny", "--tasks", "sudoku one-step", "--device", "cpu", "--json")
    code, out, _ = run(capsys, *given)
    assert code == 0
    (task,) = json.loads(out)["tasks"]
    assert task["score"] == pytest.approx(task["plan"]["published"]["readme"], abs=0.05)


def test_the_command_line_overrides_a_preset(capsys):
    given = ("--preset", "llada-8b-instruct", "--tasks", "dllm_hellaswag", "--sampler", "bd3lm", "--raw", "--dry-run")
    code, out, _ = run(capsys, *given, "--likelihood", "block", "--num-fewshot", 3, "-o", "steps=4", "--json")
    assert code == 0
    (row,) = json.loads(out)["tasks"]
    plan = row["plan"]
    assert (plan["sampler"], plan["chat"], plan["likelihood"], plan["num_fewshot"]) == ("bd3lm", False, "block", 3)
    assert (plan["options"]["steps"], plan["options"]["block_size"]) == (4, 3)


def test_options_of_the_command_line_override_those_of_a_preset():
    preset = chosen(read_preset("llada-tiny"), ["sudoku one-step"], {"steps": 4}, 2)
    (plan,) = preset.plans
    assert (plan.options["steps"], plan.options["block_size"], plan.num_fewshot) == (4, None, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("summary: x", "tasks"),
        ("summary: x\nadapters: [a]\nmodel: m\ntasks: [{tsak: a}]", "tsak"),
        ("summary: x\nadapters: [a]\nmodel: m\ntasks: [{task: a, published: {b: 1.0}}]", "metric"),
        ("summary: x\nadapters: [a]\nmodle: m\ntasks: [{task: a}]", "modle"),
        ("[]", "no preset"),
    ],
)
def test_what_is_no_preset_is_refused(tmp_path, text, says):
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        parse_preset("bad", file)


def test_splits_are_found_where_people_put_them(tmp_path):
    for place in ("arc/easy/test.jsonl", "arc/train.csv", "own/arc/hard/dev.json.gz"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    assert set(local_files(tmp_path, "own/arc", "easy")) == {"test"}
    assert set(local_files(tmp_path, "own/arc", "hard")) == {"dev"}
    assert set(local_files(tmp_path, "own/arc", None)) == {"train"}
    assert local_files(tmp_path, "own/other", None) == {}


COMMAND = ["eval", "--tasks", "llada_tiny_sudoku,llada_tiny_mirror", "--limit", "24", "--batch-size", "4"]


def start(out: Path, *launcher: str) -> subprocess.Popen:
    command = [sys.executable, *launcher, "-m", "dllm_core", *COMMAND, "--device", "cpu", "--output", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def finished(out: Path) -> int:
    files = out.glob("requests/*.jsonl")
    return sum(len(json.loads(line)["answers"]) for file in files for line in file.read_bytes().splitlines() if line)


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    process = start(killed)
    while not list(killed.glob("requests/requests-0.jsonl")) or finished(killed) < 8:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished(killed)
    assert 8 <= before < 48
    assert not (killed / "results.json").exists()
    assert start(killed).wait() == 0
    assert settled(killed / "results.json") == settled(whole / "results.json")
    assert finished(killed) == 48  # none twice


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
              "--mixed_precision=no", "--dynamo_backend=no")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_give_what_one_gives(tmp_path, launcher):
    one, two = tmp_path / "one", tmp_path / "two"
    assert start(one).wait(timeout=300) == 0
    assert start(two, *launcher).wait(timeout=300) == 0
    assert settled(two / "results.json") == settled(one / "results.json")
    assert len(list(two.glob("requests/*.jsonl"))) == 2
    assert finished(two) == 48
