"""The page of an evaluation, and what groups come to whose tasks differ in kind, in size, and in what they measure."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from dllm_core.cli import main
from dllm_core.display.report import Report, Sample, report_page
from dllm_core.evaluation.scores import compared

QA = """
task: acme_qa
dataset_path: acme/questions
output_type: generate_until
test_split: test
num_fewshot: 0
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], max_gen_toks: 32}
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
# Chats and not, three documents and one, different metrics.
GROUPS = {
    "sized": "[acme_qa, acme_plain]\naggregate_metric_list: [{metric: exact_match, weight_by_size: true}]",
    "even": "[acme_qa, acme_plain]\naggregate_metric_list: [{metric: exact_match, weight_by_size: false}]",
    "mixed": "[acme_qa, acme_choice]\naggregate_metric_list: [{metric: exact_match}, {metric: acc}]",
    "bare": "[acme_qa, acme_choice]",
}


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    tasks, data = tmp_path / "tasks", tmp_path / "data"
    tasks.mkdir()
    plain = (
        QA.replace("acme_qa", "acme_plain").replace("acme/questions", "acme/more").replace("chat: true", "chat: false")
    )
    for name, text in (("qa", QA), ("plain", plain), ("choice", CHOICE)):
        (tasks / f"{name}.yaml").write_text(text)
    for name, text in GROUPS.items():
        (tasks / f"{name}.yaml").write_text(f"group: acme_{name}\ntask: {text}\n")
    words = [{"question": f"reverse {word}", "answer": word[::-1]} for word in ("matrix", "guitar", "planet")]
    write(data / "questions", words)
    write(data / "more", [{"question": "</script><b>&", "answer": "never this"}])
    write(data / "choices", [{"question": "28+55=", "options": ["83", "84"], "label": 0}])
    return ["eval", "--include", str(tasks), "--data-dir", str(data), "--device", "cpu", "--mc-num", "4"]


def write(folder: Path, rows: list[dict]) -> None:
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def page_data(text: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_holds_scores_samples_and_traces(given, tmp_path, capsys):
    out = tmp_path / "out"
    names = "acme_qa,acme_plain,acme_choice"
    assert main([*given, "--tasks", names, "--output", str(out), "--trace-samples", "2"]) == 0
    text = (out / "index.html").read_text(encoding="utf-8")
    data = page_data(text)
    assert [row[0] for row in data["table"]] == ["task", "acme_qa", "acme_plain", "acme_choice"]
    assert [row[2] for row in data["table"]] == ["score", "100.0%", "0.0%", "100.0%"]
    samples = {(sample["task"], sample["number"]): sample for sample in data["samples"]}
    first, last, choice = samples["acme_qa", "0"], samples["acme_plain", "0"], samples["acme_choice", "0"]
    assert (first["answer"], first["target"], first["verdict"]) == ("xirtam", "xirtam", "right")
    assert "<|start_header_id|>" in first["prompt"]
    assert (last["prompt"], last["verdict"]) == ("</script><b>&", "wrong")
    assert choice["answer"].splitlines()[0].endswith("83")
    assert "acc: 1.0" in choice["scores"]
    assert [samples["acme_qa", str(number)]["trace"] for number in range(3)] == [[0, 0], [0, 1], None]
    assert (last["trace"], choice["trace"]) == ([1, 0], None)
    replay = json.loads(re.search(r'id="trace">(.*?)</script>', data["traces"][0], re.DOTALL)[1])
    assert "".join(piece[2] for piece in replay["rows"][1]["pieces"]) == samples["acme_qa", "1"]["answer"]
    assert replay["rows"][1]["changes"]
    assert not list(out.glob("samples*"))


def test_the_page_asks_nobody_and_no_text_ends_its_script():
    sample = Sample(task="t", number="0", prompt="</script><script>alert(1)</script>", answer="<!--", judged=None,
                    target="", scores="", verdict=None)  # fmt: skip
    report = Report(title="<i>", about="", table=[["a"]], parts=[], notes="", samples=[sample], traces=[])
    text = report_page(report)
    assert text.count("</script>") == 2
    assert page_data(text)["samples"][0]["prompt"] == sample.prompt
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    assert "default-src 'none'" in text


def scores(capsys, given: list[str], name: str) -> dict:
    assert main([*given, "--tasks", name, "--json"]) == 0
    (task,) = json.loads(capsys.readouterr().out)["tasks"]
    return task


def test_groups_of_tasks_that_are_asked_apart_are_aggregated(given, capsys):
    sized, even = scores(capsys, given, "acme_sized"), scores(capsys, given, "acme_even")
    assert sized["score"] == pytest.approx(75.0)  # three right, one wrong
    assert even["score"] == pytest.approx(50.0)
    assert {"acme_sized", "acme_qa", "acme_plain"} == set(sized["metrics"])
    assert sized["documents"] == {"acme_qa": 3, "acme_plain": 1}


def test_metrics_that_some_tasks_lack_are_aggregated_over_those_that_have_them(given, capsys):
    task = scores(capsys, given, "acme_mixed")
    assert task["metrics"]["acme_mixed"]["exact_match,none"] == 1.0
    assert task["metrics"]["acme_mixed"]["acc,none"] == 1.0


def test_a_group_without_an_aggregate_has_no_score_of_its_own(given, capsys):
    task = scores(capsys, given, "acme_bare")
    assert task["score"] is None
    assert {name: len(values) > 0 for name, values in task["metrics"].items()} == {"acme_qa": True, "acme_choice": True}
    assert main([*given, "--tasks", "acme_bare"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"acme_bare +4 ", printed)
    assert re.search(r"acme_choice +acc,none +100.0%", printed)


def test_the_score_is_that_of_the_group_or_of_the_only_task():
    one, two = {"acc,none": 0.5}, {"acc,none": 1.0}
    assert compared({"group": one, "task": two}, "group") == one
    assert compared({"task": two}, "alias") == two
    assert compared({"a": one, "b": two}, "tag") == {}


def test_traces_need_a_page(given, capsys):
    assert main([*given, "--tasks", "acme_qa", "--trace-samples", "2"]) == 2
    assert "--output" in capsys.readouterr().err
