"""What a training shows: the resolved configuration, then a bar on a terminal and lines elsewhere."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from dllm_core.plugins import load_plugins, use_plugin_host
from dllm_core.training import progress
from dllm_core.training.progress import ProgressBar, ProgressLines, configuration, show_configuration
from dllm_core.training.recipes import load_recipe
from dllm_core.training.run import build_trainer

OVERRIDES = ["training.max_steps=4", "training.eval_steps=2", "training.save_strategy=no", "training.logging_steps=2"]


@pytest.fixture(scope="module", autouse=True)
def _installed(make_letters_plugin, tmp_path_factory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        with use_plugin_host(load_plugins(entry_points=[make_letters_plugin(folder, "acme")])):
            yield


@pytest.fixture
def built(tmp_path):
    recipe = load_recipe("letters", OVERRIDES)
    return recipe, build_trainer(recipe, tmp_path / "out")


def test_the_configuration_is_resolved(built):
    recipe, trainer = built
    rows = {f"{section}.{key}": value for section, key, value in configuration(recipe, trainer)}
    assert rows["recipe.summary"] == "letters in alphabetical order"
    assert rows["model.adapter"] == "acme"
    assert rows["model.class"] == "LlamaForCausalLM"
    assert rows["model.weights"] == f"{sum(p.numel() for p in trainer.model.parameters()):,}"
    assert rows["model.context"] == "16"
    assert rows["objective.weighting"] == "uniform"
    assert rows["objective.schedule"] == "linear"  # a default, spelt out
    assert rows["training.learning_rate"] == "0.01"
    assert rows["training.optim"].startswith("adamw")
    assert rows["training.examples a step"] == "8 = 8 x 1 micro-batches x 1 processes"
    assert "model.checkpoint" not in rows  # what was not asked for
    assert "lora.r" not in rows


def test_lines_for_logs(built, capsys):
    show_configuration(*built)
    captured = capsys.readouterr()
    assert captured.out == ""  # which belongs to the result
    assert "\nobjective.name: mdlm\n" in captured.err
    assert "\x1b" not in captured.err
    assert captured.err.index("model.adapter") < captured.err.index("training.max_steps")


def shown(built, callback, read) -> str:
    trainer = built[1]
    trainer.add_callback(callback)
    trainer.train()
    return read()


def test_lines_elsewhere(built, capsys):
    text = shown(built, ProgressLines(), lambda: capsys.readouterr().err)
    lines = [line for line in text.splitlines() if line.startswith("step ")]
    assert lines[0].startswith("step 2/4  loss ")
    assert any(line.startswith("step 4/4  eval_loss ") and "eval_nll" in line for line in lines)
    assert not any("per_second" in line or "total_flos" in line for line in lines)


def test_a_bar_on_a_terminal(built):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    text = shown(built, ProgressBar(console), file.getvalue)
    assert "training" in text
    assert "4/4" in text
    assert "evaluation" in text
    assert "step 2/4  loss" in text  # what is logged stands above the bar
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is given back


def test_the_terminal_is_given_back_after_an_error(built):
    file = io.StringIO()
    display = ProgressBar(Console(file=file, force_terminal=True, width=100))
    display.on_train_begin(built[1].args, built[1].state, built[1].control)
    display.close()
    display.close()
    assert file.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in file.getvalue()


@pytest.mark.parametrize(("terminal", "kind"), [(True, ProgressBar), (False, ProgressLines)])
def test_what_fits_stderr(monkeypatch, terminal, kind):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=terminal))
    assert isinstance(progress.progress_display(), kind)
