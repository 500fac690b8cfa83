"""Every preset of every installed plugin: it is whole, its settings are settings, and its plan can be costed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from dllm_core import registry
from dllm_core.cli import main
from dllm_core.config import from_mapping
from dllm_core.errors import DataError, OptionError
from dllm_core.evaluation import forecast
from dllm_core.evaluation import tasks as finding
from dllm_core.evaluation.estimates import LikelihoodOptions
from dllm_core.evaluation.plan import TaskPlan, check_family, chosen, read_preset
from dllm_core.evaluation.settings import OF_LIKELIHOOD, option_names
from dllm_core.samplers import parts

ROOT = Path(__file__).parents[2]
PRESETS = [component.full_id for component in registry.components("eval preset")]
PLANS = [(name, plan) for name in PRESETS for plan in read_preset(name).plans]


@pytest.fixture
def offline(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def plan_of(preset: str, name: str) -> TaskPlan:
    (plan,) = [plan for plan in read_preset(preset).plans if plan.name == name]
    return plan


def test_each_published_table_has_its_preset():
    assert {name.split("/")[1] for name in PRESETS} >= {
        "llada-tiny", "editflow-tiny", "llada-8b-base", "llada-8b-base-official", "llada-8b-instruct", "llada-1.5",
        "dream-7b-base", "dream-7b-base-official", "dream-7b-instruct", "a2d-qwen3-0.6b-mdlm", "a2d-qwen3-0.6b-bd3lm",
        "a2d-coder-0.5b-mdlm", "a2d-coder-0.5b-bd3lm", "bert-chat-base", "bert-chat-large", "fast-dllm-llada-256",
        "fast-dllm-llada-512", "fast-dllm-dream-256", "fast-dllm-dream-512",
    }  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_names_families_and_tasks_exist(name):
    preset = read_preset(name)
    names = [plan.name for plan in preset.plans]
    assert len(set(names)) == len(names)
    assert not [each for each in names if "," in each]  # --tasks A,B takes them apart
    for adapter in preset.adapters:
        registry.find("adapter", adapter)
        check_family(preset, adapter)
    own = [plan.task for plan in preset.plans if plan.task.startswith(("dllm_", "llada_", "editflow_"))]
    finding.find_tasks(own)
    assert 0 < preset.tolerance <= 2.0


@pytest.mark.parametrize(("name", "plan"), PLANS, ids=[f"{name}-{plan.name}" for name, plan in PLANS])
def test_settings_are_options_of_the_sampler(name, plan):
    sampler = registry.find("sampler", plan.sampler or "mdlm")
    given = {key: value for key, value in plan.options.items() if key not in OF_LIKELIHOOD}
    assert set(given) <= option_names(sampler.full_id, given)
    parts.build(registry.load("sampler", sampler.full_id).options_class, sampler.spec.defaults | given)
    own = {key: value for key, value in plan.options.items() if key in OF_LIKELIHOOD and key != "mc_batch_size"}
    from_mapping(LikelihoodOptions, own | {"batch_size": plan.options.get("mc_batch_size", 32)}, what="likelihood")


@pytest.mark.parametrize(("name", "plan"), PLANS, ids=[f"{name}-{plan.name}" for name, plan in PLANS])
def test_every_plan_is_costed_without_its_data(name, plan):
    assert all(0 < score <= 100 for score in plan.published.values())
    if plan.task.startswith(("llada_tiny", "editflow_tiny")):
        return  # brings its data
    costed = forecast.stated(plan, limit=None, batch_size=8, problem="no data")
    assert costed.requests == plan.requests
    assert costed.forward_passes >= costed.requests / 32  # as many targets share a pass as copies fit
    assert costed.problem == "no data"


def test_costs_are_counted_from_what_is_stated():
    given = {"limit": None, "batch_size": 8, "problem": ""}
    writes = forecast.stated(plan_of("llada-8b-instruct", "gsm8k_cot"), **given)
    assert (writes.requests, writes.forward_passes) == (1319, 165 * 512)
    scores = forecast.stated(plan_of("llada-8b-base", "arc_challenge"), **given)
    assert (scores.requests, scores.forward_passes) == (4687, 4687 * 32 // 32)
    few = forecast.stated(plan_of("llada-8b-instruct", "gsm8k_cot"), **{**given, "limit": 20})
    assert (few.requests, few.forward_passes) == (20, 3 * 512)
    unknown = forecast.stated(TaskPlan(task="acme"), **given)
    assert (unknown.requests, unknown.forward_passes) == (None, None)


@pytest.mark.parametrize(
    ("preset", "task", "options", "shots", "published"),
    [
        ("dream-7b-instruct", "ifeval", {"max_new_tokens": 1280, "temperature": 0.1, "top_p": 0.9}, 0, (62.5, 59.7)),
        ("dream-7b-base", "mmlu", {"mc_num": 16, "mc_batch_size": 16, "end_in_view": True}, 5, (69.5, 70.0)),
        ("dream-7b-base-official", "gpqa_main_n_shot", {"mc_num": 128, "mc_batch_size": 32}, 5, (36.6,)),
        ("llada-8b-base", "hellaswag", {"mc_num": 32, "mc_batch_size": 32}, 0, (70.5, 69.2)),
        ("llada-8b-base-official", "hellaswag guided", {"mc_num": 128, "guidance_scale": 0.5}, 0, (72.5,)),
        ("llada-8b-base-official", "bbh 256 tokens", {"max_new_tokens": 256, "block_size": 256}, 3, (45.0,)),
        ("llada-8b-instruct", "gsm8k_cot blocks of 8", {"max_new_tokens": 256, "block_size": 8}, 5, (78.6,)),
        ("llada-1.5", "minerva_math", {"max_new_tokens": 1024, "block_size": 128}, 0, (42.6, 42.3)),
        ("llada-8b-instruct", "dllm_hellaswag", {"max_new_tokens": 3, "block_size": 3}, 0, (74.6, 76.7)),
        ("llada-8b-base-official", "mmlu", {"mc_num": 1}, 5, (65.9,)),
        ("a2d-qwen3-0.6b-mdlm", "gsm8k_cot", {"block_size": 256}, 5, (29.3,)),
        ("a2d-qwen3-0.6b-bd3lm", "gsm8k_cot", {"block_size": 32}, 0, (46.3,)),
        ("bert-chat-base", "cmmlu", {"mc_num": 32}, 5, (26.1,)),
        ("fast-dllm-llada-512", "gsm8k parallel", {"max_new_tokens": 512, "block_size": 32}, 5, (77.6, 77.6)),
        ("fast-dllm-llada-256", "mbpp baseline", {"suppress_confidence_tokens": [126081, 126348]}, 3, (29.4, 36.4)),
        ("fast-dllm-dream-256", "gsm8k parallel", {"block_size": None, "confidence": "probability"}, 5, (74.2, 72.6)),
    ],
)
def test_settings_and_scores_are_those_of_the_tables(preset, task, options, shots, published):
    plan = plan_of(preset, task)
    assert {name: plan.options[name] for name in options} == options
    assert (plan.num_fewshot, tuple(plan.published.values())) == (shots, published)


def test_a_preset_says_how_prompts_begin():
    assert read_preset("dream-7b-base").add_bos is True
    assert read_preset("dream-7b-instruct").add_bos is False
    assert read_preset("llada-tiny").add_bos is None


def test_one_number_of_examples_for_all_tasks_of_a_preset():
    assert {plan.num_fewshot for plan in chosen(read_preset("dream-7b-base"), [], {}, 1).plans} == {1}


@pytest.mark.parametrize("stated", [0, -3])
def test_impossible_numbers_of_requests_are_refused(stated):
    with pytest.raises(OptionError, match="requests must be at least 1"):
        TaskPlan(task="acme", requests=stated)


def test_a_dry_run_of_a_preset_without_data_names_the_files_to_get(capsys, offline, tmp_path):
    given = ["eval", "--preset", "llada-8b-instruct", "--tasks", "dllm_mmlu_choice,dllm_hellaswag", "--dry-run"]
    assert main([*given, "--data-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"at most {1756 * 3 + 1256 * 3} forward passes" in printed
    assert f"{tmp_path}/mmlu/all/test.jsonl" in printed
    assert f"{tmp_path}/hellaswag/" in printed


def test_the_preset_of_a_bundled_checkpoint_has_every_cell_of_its_readme():
    text = (ROOT / "plugins/dllm-llada/README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    orders = ("confidence", "left-to-right", "one-step")
    cells = {f"{skill} {order}": float(cell) for skill, *row in table for order, cell in zip(orders, row, strict=True)}
    assert len(cells) == 21
    assert {plan.name: plan.published["readme"] for plan in read_preset("llada-tiny").plans} == cells


def test_the_preset_of_the_editing_checkpoint_has_every_line_of_its_readme():
    text = (ROOT / "plugins/dllm-editflow/README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ([\w ,]+) \| 500 \| ([\d.]+)% \|", text, re.MULTILINE)
    cells = {"files" if kind.startswith("2 or 3") else kind: float(cell) for kind, cell in table}
    assert len(cells) == 5
    assert {plan.name: plan.published["readme"] for plan in read_preset("editflow-tiny").plans} == cells


def test_drafts_are_mended_as_the_editing_checkpoint_mends_them(capsys):
    given = ["eval", "--preset", "editflow-tiny", "--tasks", "no error,3 errors", "--limit", "25", "--device", "cpu"]
    assert main([*given, "--json"]) == 0
    clean, mended = json.loads(capsys.readouterr().out)["tasks"]
    assert (clean["score"], clean["cost"]["forward_passes"]) == (100.0, 1)
    assert mended["score"] >= 92.0
    assert mended["cost"]["forward_passes"] > 1
    assert main([*given, "--json", "--dry-run"]) == 0
    assert [row["forward_passes"] for row in json.loads(capsys.readouterr().out)["tasks"]] == [64, 64]


@pytest.mark.slow
def test_lines_of_the_editing_readme_come_out_of_the_preset(capsys):
    assert main(["eval", "--preset", "editflow-tiny", "--device", "cpu", "--json"]) == 0
    tasks = json.loads(capsys.readouterr().out)["tasks"]
    assert [one["score"] for one in tasks] == pytest.approx(
        [one["plan"]["published"]["readme"] for one in tasks], abs=0.05
    )


@pytest.mark.slow
def test_cells_of_the_readme_come_out_of_the_preset(capsys):
    """The fast cells; all 21 come out of ``dllm eval --preset llada-tiny``, in some minutes."""
    names = [plan.name for plan in read_preset("llada-tiny").plans if plan.options.get("steps") == 1]
    assert main(["eval", "--preset", "llada-tiny", "--tasks", ",".join(names), "--device", "cpu", "--json"]) == 0
    scores = {one["plan"]["label"]: one["score"] for one in json.loads(capsys.readouterr().out)["tasks"]}
    want = {name: plan_of("llada-tiny", name).published["readme"] for name in names}
    assert scores == pytest.approx(want, abs=0.05)


@pytest.mark.slow
def test_every_preset_has_a_dry_run(capsys, offline, monkeypatch):
    manager = finding.TaskManager(include_path=[str(path) for path in finding.task_folders()])
    monkeypatch.setattr(finding, "find_tasks", lambda names, include: finding.known(manager, names))
    for name in PRESETS:
        assert main(["eval", "--preset", name, "--dry-run", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["tasks"]
        assert len(rows) == len(read_preset(name).plans)
        assert [row["plan"]["task"] for row in rows if not row["forward_passes"]] == []


def test_a_preset_for_another_family_stops_the_command(capsys):
    given = ["--preset", "dream-7b-instruct", "--tasks", "dllm_mmlu_letter", "--model", "llada-tiny"]
    assert main(["eval", *given, "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "preset 'dream-7b-instruct' is for dream, this model is of the family llada" in said
    assert said.count("\n") == 1


def test_missing_data_of_a_task_stop_a_run(offline, tmp_path):
    manager = finding.find_tasks(["dllm_mmlu_letter"])
    with pytest.raises(DataError, match=r"'cais/mmlu' \(all\).*mmlu/all/test.jsonl"):
        finding.load_tasks(manager, "dllm_mmlu_letter", tmp_path)


def test_a_missing_split_is_named_with_its_file(offline, tmp_path):
    file = tmp_path / "mmlu" / "all" / "test.jsonl"
    file.parent.mkdir(parents=True)
    row = {"subject": "anatomy", "question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 0}
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    manager = finding.find_tasks(["dllm_mmlu_letter"])
    with pytest.raises(DataError, match=r"needs .*mmlu/all/dev.jsonl; this folder has test only"):
        finding.load_tasks(manager, "dllm_mmlu_letter", tmp_path)


def test_a_task_that_needs_a_missing_package_names_it(tmp_path):
    lines = ["task: acme_dates", "custom_dataset: !function dates.rows", "output_type: generate_until"]
    (tmp_path / "acme_dates.yaml").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "dates.py").write_text("import no_such_calendar\n", encoding="utf-8")
    manager = finding.find_tasks(["acme_dates"], [tmp_path])
    with pytest.raises(DataError, match=r"'acme_dates' needs the package no_such_calendar.*pip install"):
        finding.load_tasks(manager, "acme_dates")
