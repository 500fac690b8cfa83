"""Tasks that run code: found before anything is loaded, refused without the flag, scored in the jail with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("resource")

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from dllm_core.cli import main
from dllm_core.errors import OptionError
from dllm_core.evaluation import execution
from dllm_core.evaluation.code_tasks import CodeEval, allowed, code_tasks, refuse_code
from dllm_core.evaluation.tasks import load_tasks, local_data

STOCK = Path(lm_eval.tasks.__file__).parent
HUMANEVAL = {
    "task_id": "T/0",
    "prompt": "def twice(x):\n",
    "test": "def check(f):\n    assert f(2) == 4\n",
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
}
MBPP = {
    "task_id": 11,
    "text": "Double it.",
    "code": "",
    "test_list": [f"assert twice({n}) == {2 * n}" for n in range(3)],
}
CODE = """
task: acme_code
dataset_path: acme/code
output_type: generate_until
unsafe_code: true
tag: acme_tagged
test_split: test
num_fewshot: 0
doc_to_text: "{{prompt}}"
doc_to_target: "assert twice(2) == 4"
generation_kwargs: {until: [], max_gen_toks: 8}
metric_list: [{metric: !function scorer.pass_at_k, aggregation: mean, higher_is_better: true, k: [1]}]
metadata: {version: 1.0}
"""
GROUP = "group: acme_group\ntask: [acme_safe, {group: acme_inner, task: [{task: acme_code, num_fewshot: 1}]}]\n"


class Scripted(LM):
    """Says what it was told to say."""

    def __init__(self, answers: list[str]) -> None:
        super().__init__()
        self.answers = answers

    def generate_until(self, requests: list) -> list[str]:
        return self.answers[: len(requests)]

    def loglikelihood(self, requests: list) -> list:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@pytest.fixture(autouse=True)
def no_switch(monkeypatch) -> None:
    monkeypatch.delenv(execution.SWITCH, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    own = tmp_path / "tasks"
    own.mkdir()
    (own / "code.yaml").write_text(CODE)
    (own / "safe.yaml").write_text(CODE.replace("acme_code", "acme_safe").replace("unsafe_code: true", ""))
    (own / "group.yaml").write_text(GROUP)
    (own / "scorer.py").write_text("from dllm_core.evaluation.execution import pass_at_k\n")
    return own


def data(tmp_path: Path, name: str, rows: list[dict]) -> Path:
    file = tmp_path / "data" / name / "test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def score(manager: TaskManager, name: str, where: Path, answers: list[str], shots: int | None = None) -> dict:
    load_tasks(manager, name, where)
    with local_data(name, where), allowed(allow=True):
        found = simple_evaluate(
            Scripted(answers), tasks=[name], task_manager=manager, confirm_run_unsafe_code=True, num_fewshot=shots
        )
    return {key: value for key, value in found["results"][name].items() if key.startswith("pass") and "err" not in key}


def test_lm_evals_humaneval_is_scored_in_the_jail(tmp_path):
    where = data(tmp_path, "openai_humaneval", [HUMANEVAL, {**HUMANEVAL, "task_id": "T/1"}])
    manager = TaskManager(include_path=str(STOCK / "humaneval"), include_defaults=False)
    assert code_tasks(manager, "humaneval") == ["humaneval"]
    right, wrong = HUMANEVAL["canonical_solution"], "    import socket; socket.socket()\n    return 2 * x\n"
    assert score(manager, "humaneval", where, [right, wrong]) == {"pass@1,create_test": 0.5}


def test_lm_evals_mbpp_is_scored_in_the_jail(tmp_path):
    where = data(tmp_path, "mbpp/full", [MBPP] * 3)
    manager = TaskManager(include_path=str(STOCK / "mbpp"), include_defaults=False)
    answers = ["def twice(x): return 2 * x", "def twice(x): return x", "raise SystemExit(0)"]
    assert score(manager, "mbpp", where, answers, 0) == {"pass_at_1,none": pytest.approx(1 / 3)}


def test_loading_tasks_runs_nothing_and_scoring_them_needs_the_switch(monkeypatch):
    monkeypatch.setattr(execution, "run_program", lambda *_: pytest.fail("a program ran"))
    stand_in = CodeEval(loading=True)
    stand_in.compute(references=["assert True"], predictions=[["pass"]], k=[1])
    stand_in.loading = False
    with pytest.raises(OptionError, match="--allow-code-execution"):
        stand_in.compute(references=["assert True"], predictions=[["pass"]], k=[1])


@pytest.mark.parametrize("name", ["acme_code", "acme_group", "acme_tagged"])
def test_code_is_found_below_groups_and_tags(folder, name):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    assert code_tasks(manager, name) == ["acme_code"]
    with pytest.raises(OptionError, match="'acme_code' runs code"):
        refuse_code(manager, [name])
    refuse_code(manager, ["acme_safe"])


def test_the_command_refuses_before_it_loads_a_model(folder, capsys, monkeypatch):
    monkeypatch.setattr("dllm_core.models.loading.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert main(["eval", "--tasks", "acme_group", "--include", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "--allow-code-execution" in err
    assert err.count("\n") == 1


def test_the_command_scores_code_where_it_is_allowed(folder, tmp_path, capsys):
    where = data(tmp_path, "code", [{"prompt": "reverse matrix"}])
    given = ["--tasks", "acme_code", "--include", str(folder), "--data-dir", str(where), "--device", "cpu", "--json"]
    assert main(["eval", *given, "--allow-code-execution"]) == 0
    report = json.loads(capsys.readouterr().out)
    (task,) = report["tasks"]
    assert report["settings"]["code_execution"] == execution.holder()
    assert task["metrics"]["acme_code"]["pass@1,none"] == 0.0
    assert execution.SWITCH not in os.environ
