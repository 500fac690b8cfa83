"""Trainings killed with SIGKILL between and during checkpoint writes: they go on, and end in the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dllm_core.training.recipes import load_recipe

CAMPAIGN = Path(__file__).with_name("kill_campaign.py")


def campaign(make_plugin, folder: Path, kind: str, **training: object) -> dict[str, object]:
    """What kill_campaign.py reports."""
    entry_point = make_plugin(folder / "plugin", "acme")
    package = entry_point.value.partition(".")[0]
    shipped = yaml.safe_load((folder / "plugin" / package / "recipes" / "letters.yaml").read_text())
    settings = {"per_device_train_batch_size": 4, "use_cpu": True, "ema_decay": 0.9, "logging_steps": 10_000, "seed": 1}
    shipped["training"] = settings | training
    shipped["data"]["eval_count"] = 0
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(shipped))
    load_recipe(recipe)
    done = subprocess.run(
        [sys.executable, CAMPAIGN, folder / "plugin", entry_point.value, recipe, folder / "out", kind],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    logs = "".join(log.read_text()[-2000:] for log in folder.glob("out/*.log") if done.returncode)
    assert done.returncode == 0, done.stderr[-2000:] + logs
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_killed_at_random_moments(make_letters_plugin, tmp_path):
    """24 kills of one training, whose time goes half into steps and half into writing."""
    (tmp_path / "out").mkdir()
    report = campaign(make_letters_plugin, tmp_path, "random", max_steps=600, save_steps=5, save_total_limit=3)
    kills = report["kills"]
    assert len(kills) >= 20
    during = [kill for kill in kills if kill["half_written"]]
    assert len(during) >= 3, kills  # files of a checkpoint that was being written were found
    assert len(kills) - len(during) >= 3, kills
    assert all(kill["after"] >= kill["before"] for kill in kills)  # the newest whole checkpoint was never lost
    assert kills[-1]["after"] > 0
    assert report["end"] == 0
    assert report["equal"]
    assert report["left"] == ["checkpoint-590", "checkpoint-595", "checkpoint-600"]


@pytest.mark.slow
def test_killed_at_every_kind_of_file_operation(make_letters_plugin, tmp_path):
    """A kill right before each of 30 operations on files, from the first to the publishing of the model."""
    (tmp_path / "out").mkdir()
    report = campaign(make_letters_plugin, tmp_path, "events", max_steps=3, save_steps=1, save_total_limit=1)
    kills = report["kills"]
    assert len(kills) == 30
    assert all(kill["killed"] == -9 and kill["end"] == 0 and kill["equal"] for kill in kills), kills
    assert sum(bool(kill["half_written"]) for kill in kills) >= 10
    assert {kill["newest"] for kill in kills} == {0, 1, 2, 3}  # also behind the last step, before the model was whole
