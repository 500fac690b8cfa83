"""A good evaluation task passes the suite, in every form that a task may have, and so do the core's own."""

from __future__ import annotations

import importlib.util
import json
import socket
import unittest
from pathlib import Path

import pytest

from dllm_core.conformance import own_tasks, runner
from dllm_core.conformance.eval_task import EvalTaskTests
from dllm_core.conformance.suite import Suite
from dllm_core.conformance.task_suite import cut, offline
from tests.conformance.mutants.eval_task import ARITHMETIC, SUM

pytest.importorskip("lm_eval")

ROWS = [{"left": left, "right": right, "answer": left + right} for left, right in [(1, 2), (3, 4), (5, 6), (7, 8)]]


def suite_of(path: Path, **attributes: object) -> type[EvalTaskTests]:
    body = {"component": "good:task", "prefix": "arithmetic", "load_component": lambda self: path}
    return type("Suite", (EvalTaskTests,), body | attributes)


def run(suite: type[Suite]) -> dict[str, str]:
    """Runs all checks; the reasons of those that were skipped."""
    skipped = {}
    for check in suite.checks():
        try:
            getattr(suite(), check)()
        except unittest.SkipTest as reason:
            skipped[check] = str(reason)
    return skipped


class TestArithmetic(EvalTaskTests):
    """A folder of two tasks that bring their own data."""

    component = "good:arithmetic"
    prefix = "arithmetic"

    def load_component(self) -> Path:
        return ARITHMETIC


@pytest.mark.parametrize("suite", own_tasks.TASK_SUITES)
def test_the_tasks_of_the_core_pass(suite: type[EvalTaskTests]) -> None:
    """By the runner, as ``dllm plugins check core`` runs them; no check is skipped."""
    assert [(one.check, one.message) for one in runner.run(suite) if one.state != "passed"] == []


def edited(folder: Path, *edits: tuple[str, str]) -> Path:
    text = (ARITHMETIC / SUM).read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path = folder / "task.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_one_file_of_a_folder_is_a_task() -> None:
    suite = suite_of(ARITHMETIC / SUM)
    assert list(suite().load()) == ["arithmetic_sum"]
    assert run(suite) == {}


def test_a_data_set_of_the_hub_is_replaced_by_its_fixture(tmp_path: Path) -> None:
    path = edited(tmp_path, ("custom_dataset: !function rows.sums", "dataset_path: acme/sums"))
    assert run(suite_of(path, fixture={"train": ROWS[:1], "test": ROWS[1:]})) == {}
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS[1:]), encoding="utf-8")
    assert run(suite_of(path, fixture={"train": ROWS[:1], "test": file})) == {}


def test_a_local_file_is_loaded_as_it_is(tmp_path: Path) -> None:
    for name, rows in (("train", ROWS[:1]), ("test", ROWS[1:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    files = f"{{train: {tmp_path}/train.jsonl, test: {tmp_path}/test.jsonl}}"
    local = f"dataset_path: json\ndataset_kwargs: {{data_files: {files}}}"
    assert run(suite_of(edited(tmp_path, ("custom_dataset: !function rows.sums", local)))) == {}


def test_likelihoods_of_targets_are_answered(tmp_path: Path) -> None:
    start, end = "generation_kwargs:", "metadata:"
    text = edited(
        tmp_path,
        ("generate_until", "loglikelihood"),
        ("custom_dataset: !function rows.sums", "dataset_path: acme/sums"),
    ).read_text(encoding="utf-8")
    metric = "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    path = tmp_path / "task.yaml"
    path.write_text(text[: text.index(start)] + metric + text[text.index(end) :], encoding="utf-8")
    assert run(suite_of(path, fixture={"train": ROWS[:1], "test": ROWS[1:]})) == {}


def test_code_is_run_only_where_that_is_declared() -> None:
    class Unsafe(suite_of(ARITHMETIC / SUM)):
        def load(self) -> dict:
            tasks = super().load()
            for task in tasks.values():
                task.UNSAFE_CODE = task.config.unsafe_code = True
            return tasks

    skipped = run(Unsafe)
    assert "runs_code is not declared" in skipped["test_right_answers_score_one"]
    assert run(type("Declared", (Unsafe,), {"runs_code": True})) == {}


def test_scores_without_bounds_are_not_held_to_them() -> None:
    skipped = run(suite_of(ARITHMETIC, bounded=False))
    assert set(skipped) == {
        "test_right_answers_score_one", "test_wrong_answers_score_nothing", "test_scores_lie_in_bounds"
    }  # fmt: skip
    assert all("bounded is not declared" in reason for reason in skipped.values())


def test_without_lm_eval_the_checks_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name))
    skipped = run(suite_of(ARITHMETIC))
    assert set(skipped) == set(EvalTaskTests.checks())
    assert all("pip install 'dllm-core[eval]'" in reason for reason in skipped.values())


@pytest.mark.parametrize(
    ("component", "prefix"), [("acme/sums", "acme"), ("dllm_acme:tasks/sums", "acme"), ("dllm_acme.tasks:sums", "acme")]
)
def test_names_begin_with_the_plugins_name(component: str, prefix: str) -> None:
    assert type("Suite", (EvalTaskTests,), {"component": component})().expected_prefix() == prefix


def test_offline_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo
    with offline(None):
        assert Path.cwd() != tmp_path
        with pytest.raises(OSError, match="without a network"):
            socket.create_connection(("localhost", 9))
        with socket.socket() as one, pytest.raises(OSError, match="without a network"):
            one.connect(("127.0.0.1", 9))
    assert Path.cwd() == tmp_path
    assert socket.socket.connect is connect
    assert socket.getaddrinfo is getaddrinfo


def test_answers_are_cut_at_the_first_stop() -> None:
    assert cut("12\n13", ["\n"]) == "12"
    assert cut("12 13", "3") == "12 1"
    assert cut("12", []) == "12"
