"""Checkpoints: whole or not there, never the last one deleted; trainings that go on, and those that may not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import dllm_core as dllm
from dllm_core.cli.train import command
from dllm_core.errors import OptionError
from dllm_core.plugins import load_plugins, use_plugin_host
from dllm_core.training import checkpoints
from dllm_core.training.recipes import load_recipe
from dllm_core.training.run import train

FAST = ["data.eval_count=0", "training.eval_strategy=no", "training.save_steps=1"]


@pytest.fixture(scope="module", autouse=True)
def _installed(make_letters_plugin, tmp_path_factory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        with use_plugin_host(load_plugins(entry_points=[make_letters_plugin(folder, "acme")])):
            yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    recipe = load_recipe("letters", [*FAST, "training.max_steps=4", "training.ema_decay=0.8"])
    return train(recipe, tmp_path_factory.mktemp("run") / "out")


def make(folder: Path, step: int) -> Path:
    """A whole checkpoint of one file."""
    written = checkpoints.start_writing(folder) / f"checkpoint-{step}"
    written.mkdir()
    (written / "weights").write_text("x" * 100)
    return checkpoints.finish_writing(folder, written.name)


def same(one: Path, other: Path) -> bool:
    left, right = load_file(one), load_file(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ------------------------------------------------------------------------------------------------ whole or not there


def test_only_whole_checkpoints_count(tmp_path):
    first, second, third = (make(tmp_path, step) for step in (5, 10, 9))
    assert checkpoints.newest_checkpoint(tmp_path) == second  # 10 after 9, not by name
    (second / "weights").write_text("x" * 99)  # copied in part
    assert checkpoints.newest_checkpoint(tmp_path) == third
    (third / "weights").unlink()
    assert checkpoints.newest_checkpoint(tmp_path) == first
    (first / checkpoints.LIST_OF_FILES).write_text("{")
    assert checkpoints.newest_checkpoint(tmp_path) is None
    assert checkpoints.newest_checkpoint(tmp_path / "absent") is None


def test_what_was_half_written_is_not_picked_and_is_removed(tmp_path):
    make(tmp_path, 3)
    half = checkpoints.start_writing(tmp_path) / "checkpoint-4"
    half.mkdir()
    (half / "weights").touch()
    assert checkpoints.newest_checkpoint(tmp_path).name == "checkpoint-3"
    checkpoints.remove_half_written(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_checkpoint_replaces_one_of_the_same_step(tmp_path):
    make(tmp_path, 3)
    written = checkpoints.start_writing(tmp_path) / "checkpoint-3"
    written.mkdir()
    (written / "other").write_text("new")
    checkpoints.finish_writing(tmp_path, "checkpoint-3")
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-3"]
    assert (tmp_path / "checkpoint-3" / "other").read_text() == "new"
    assert checkpoints.is_whole(tmp_path / "checkpoint-3")


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, {1, 2, 3, 4}),
        (0, None, {1, 2, 3, 4}),
        (2, None, {3, 4}),
        (1, None, {4}),
        (1, "checkpoint-2", {2, 4}),
        (2, "checkpoint-1", {1, 4}),
        (3, "checkpoint-4", {2, 3, 4}),
        (9, None, {1, 2, 3, 4}),
    ],
)
def test_the_limit_spares_the_newest_and_the_best(tmp_path, limit, best, left):
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    checkpoints.remove_oldest(tmp_path, limit, best and str(tmp_path / best))
    assert {checkpoints.step_of(entry) for entry in tmp_path.iterdir()} == left


def test_the_limit_never_takes_the_only_whole_one(tmp_path):
    make(tmp_path, 1)
    for step in (2, 3):  # of later steps, but not whole
        (make(tmp_path, step) / "weights").unlink()
    checkpoints.remove_oldest(tmp_path, 1, None)
    assert checkpoints.newest_checkpoint(tmp_path).name == "checkpoint-1"


def test_a_training_leaves_whole_checkpoints_within_the_limit(trained, tmp_path):
    found = checkpoints.whole_checkpoints(trained / "checkpoints")
    assert [entry.name for entry in found] == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {file.name for file in found[0].iterdir()}
    recipe = load_recipe("letters", [*FAST, "training.max_steps=4", "training.save_total_limit=2"])
    out = train(recipe, tmp_path / "out")
    assert sorted(entry.name for entry in (out / "checkpoints").iterdir()) == ["checkpoint-3", "checkpoint-4"]


def test_the_best_checkpoint_is_named_where_it_stays(tmp_path):
    options = ["training.metric_for_best_model=nll", "training.load_best_model_at_end=true", "training.max_steps=4"]
    options += ["training.eval_steps=1", "training.save_steps=1", "training.save_total_limit=1", "logging_steps=1"]
    out = train(load_recipe("letters", options), tmp_path / "out")
    newest = checkpoints.newest_checkpoint(out / "checkpoints")
    state = json.loads((newest / checkpoints.STATE_FILE).read_text())
    best = Path(state["best_model_checkpoint"])
    assert best.parent == out / "checkpoints"
    assert checkpoints.is_whole(best)
    assert same(out / "model.safetensors", best / "model.safetensors")


# --------------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("step", [1, 4])
def test_it_goes_on_to_the_same_bits(trained, tmp_path, step):
    """From within, and from behind the last step, where only the publishing was missed."""
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    shutil.copytree(trained / "checkpoints" / f"checkpoint-{step}", out / "checkpoints" / f"checkpoint-{step}")
    shutil.copy(trained / "recipe.yaml", out)
    train(load_recipe(trained / "recipe.yaml"), out, resume=True)
    assert same(out / "model.safetensors", trained / "model.safetensors")
    for name in ("model.safetensors", "ema.safetensors"):
        assert same(out / "checkpoints/checkpoint-4" / name, trained / "checkpoints/checkpoint-4" / name)


def test_a_finished_training_says_so(trained, capsys):
    before = (trained / "model.safetensors").stat().st_mtime_ns
    assert train(load_recipe(trained / "recipe.yaml"), trained, resume=True) == trained
    assert "is finished: trained to step 4; raise training.max_steps" in capsys.readouterr().err
    assert (trained / "model.safetensors").stat().st_mtime_ns == before


def test_a_finished_training_goes_on_where_more_steps_are_asked_for(trained, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    more = load_recipe(trained / "recipe.yaml", ["training.max_steps=6"])
    train(more, out, resume=True)
    assert checkpoints.newest_checkpoint(out / "checkpoints").name == "checkpoint-6"
    assert "with training.max_steps 6 where it was 4" in capsys.readouterr().err
    assert not same(out / "model.safetensors", trained / "model.safetensors")
    assert checkpoints.finished_at(out, {"max_steps": 6, "num_train_epochs": 3.0}) == 6
    assert checkpoints.finished_at(out, {"max_steps": 4, "num_train_epochs": 3.0}) is None


def test_a_folder_with_checkpoints_is_not_trained_over(trained, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    shutil.copytree(trained / "checkpoints" / "checkpoint-2", tmp_path / "checkpoints" / "checkpoint-2")
    with pytest.raises(OptionError, match="holds a training that got to step 2; go on with --resume"):
        train(load_recipe("letters"), tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.config.hidden_size=64", "has model.config.hidden_size=32, this one 64"),
        ("objective.weighting=schedule", "has objective.weighting='uniform', this one 'schedule'"),
        ("data.options.longest=5", "has data.options.longest=7, this one 5"),
        ("training.seed=7", "has training.seed=None, this one 7"),
        ("training.ema_decay=null", "has training.ema_decay=0.8, this one None"),
    ],
)
def test_another_training_is_not_gone_on_with(trained, tmp_path, override, message):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    with pytest.raises(OptionError) as caught:
        train(load_recipe(trained / "recipe.yaml", [override, "training.max_steps=6"]), out, resume=True)
    assert message in str(caught.value)
    assert "resume with the recipe" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.config.hidden_size=64",
            "is of another architecture: weight lm_head.weight is (11, 32) there and (11, 64)",
        ),
        ("model.config.num_hidden_layers=1", "is of another architecture: weight model.layers.1."),
        ("model.config.num_hidden_layers=3", "is of another architecture: weight model.layers.2."),
        ("training.ema_decay=null", "holds an average of the weights; set ema_decay"),
    ],
)
def test_the_checkpoint_itself_is_looked_at(trained, tmp_path, override, message):
    """Also where no recipe lies beside it: Hugging Face would load what fits."""
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(OptionError) as caught:
        train(load_recipe(trained / "recipe.yaml", [override]), tmp_path, resume=True)
    assert message in str(caught.value)


def test_an_average_cannot_begin_in_the_middle(trained, tmp_path):
    out = train(load_recipe("letters", [*FAST, "training.max_steps=1"]), tmp_path / "plain")
    (out / "recipe.yaml").unlink()
    more = load_recipe("letters", [*FAST, "training.max_steps=2", "training.ema_decay=0.5"])
    with pytest.raises(OptionError, match="was trained without an average"):
        train(more, out, resume=True)


def test_the_command_resumes_and_reports(trained):
    result = CliRunner().invoke(
        command, ["--recipe", str(trained / "recipe.yaml"), "--output", str(trained), "--resume", "--json"]
    )
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"output": str(trained)}
    assert "is finished" in result.stderr


def test_checkpoints_load_as_models(trained):
    last = trained / "checkpoints" / "checkpoint-4"
    own, published = dllm.load(last, device="cpu"), dllm.load(trained, device="cpu")
    assert own.vocab_size == published.vocab_size
    assert not same(last / "model.safetensors", trained / "model.safetensors")  # the average is what is published
    assert same(last / "ema.safetensors", trained / "model.safetensors")
