"""The part of lm-eval's index that some names need: it is the whole one for these names, or it is not taken."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager

from dllm_core import registry
from dllm_core.evaluation import narrowing
from dllm_core.evaluation.narrowing import narrowed
from dllm_core.evaluation.plan import read_preset
from dllm_core.evaluation.tasks import task_folders

TASK = "output_type: generate_until\ndataset_path: acme/questions\n"
FILES = {
    "arts/one.yaml": f"task: arts_one\ntag: arts\n{TASK}",
    "arts/two.yaml": f"include: ../shared/base.yaml\ntask: arts_two\n{TASK}",
    "shared/base.yaml": "tag: far_away\n",
    "more/three.yaml": f"task: more_three\ntag:\n  - far_away\n{TASK}",
    "arts/group.yaml": "group: both\ntask: [arts, {group: in, task: [more_three, {task: arts_two, num_fewshot: 1}]}]\n",
    "more/spread.yaml": "group: spread\ntask: [far_away]\n",
    "named/like.yaml": f"task: arts_one_more\ndescription: not acme/arts_one, nor arts_one-b\n{TASK}",
    "at_the_root.yaml": f"task: rooted\n{TASK}",
}


@pytest.fixture
def library(tmp_path, monkeypatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(narrowing, "ROOT", tmp_path)
    return tmp_path


def described(manager: TaskManager, names: Iterable[str]) -> dict[str, tuple]:
    """All that an index says of names and of what is below them."""
    found = {name: manager.task_index.get(name) for name, _ in narrowing._below(manager.task_index, names)}
    return {name: entry and (entry.kind, entry.yaml_path, entry.cfg, entry.tags) for name, entry in found.items()}


@pytest.mark.parametrize("names", [["arts_one"], ["arts"], ["both"], ["more_three", "arts_two"]])
def test_what_is_needed_is_as_in_the_whole_index(library, names):
    whole = TaskManager(include_path=str(library), include_defaults=False)
    part = narrowed(names, [])
    assert described(part, names) == described(whole, names)
    assert len(part.task_index) < len(whole.task_index)


def test_only_folders_with_the_name_are_read(library):
    found = set(narrowed(["arts_one"], []).task_index)
    assert {"arts_one", "arts_one_more", "more_three", "rooted"} & found == {"arts_one"}


@pytest.mark.parametrize("names", [["spread"], ["far_away"], ["rooted"], ["unheard_of"], ["arts_one", "unheard_of"]])
def test_what_cannot_be_sure_takes_the_whole_index(library, names):
    assert narrowed(names, []) is None


def test_folders_of_the_user_come_before_lm_evals_own(library, tmp_path_factory):
    own = tmp_path_factory.mktemp("own")
    (own / "mine.yaml").write_text(f"task: arts_one\nnum_fewshot: 3\n{TASK}", encoding="utf-8")
    assert narrowed(["arts_one"], [str(own)]).task_index["arts_one"].cfg["num_fewshot"] == 3


@pytest.mark.slow
def test_all_tasks_of_the_presets_are_found_as_in_lm_evals_whole_index():
    paths = [str(path) for path in task_folders()]
    presets = (read_preset(component.full_id) for component in registry.components("eval preset"))
    names = {plan.task for preset in presets for plan in preset.plans}
    whole = TaskManager(include_path=paths)
    stock = sorted(name for name in names if not name.startswith(("dllm_", "llada_", "editflow_")))
    assert len(stock) > 15
    for name in stock:
        assert described(narrowed([name], paths), [name]) == described(whole, [name]), name
