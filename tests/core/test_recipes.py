"""Recipes: found in plugins, checked key by key, trained into a folder that loads, resumed from a whole checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

import dllm_core as dllm
from dllm_core.cli.train import command
from dllm_core.errors import AmbiguousComponentError, DataError, ModelLoadError, OptionError, UnknownComponentError
from dllm_core.plugins import import_string, load_plugins, use_plugin_host
from dllm_core.training.checkpoints import newest_checkpoint
from dllm_core.training.examples import GeneratedExamples, read_examples
from dllm_core.training.recipes import find_recipes, load_recipe, parse_recipe
from dllm_core.training.run import train


@pytest.fixture(scope="module")
def entry_point(make_letters_plugin, tmp_path_factory) -> Iterator[EntryPoint]:
    folder = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield make_letters_plugin(folder, "acme")


@pytest.fixture(autouse=True)
def _installed(entry_point):
    with use_plugin_host(load_plugins(entry_points=[entry_point])):
        yield


@pytest.fixture(scope="module")
def trained(entry_point, tmp_path_factory) -> Path:
    with use_plugin_host(load_plugins(entry_points=[entry_point])):
        return train(load_recipe("letters"), tmp_path_factory.mktemp("run") / "out")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# ---------------------------------------------------------------------------------------------- finding and reading


def test_recipes_are_found_by_name_full_id_and_file(tmp_path):
    assert list(find_recipes()) == ["acme/letters"]
    by_name = load_recipe("letters")
    assert by_name == load_recipe("acme/letters")
    file = tmp_path / "own.yaml"
    file.write_text(by_name.as_yaml())
    assert load_recipe(file) == by_name  # what is written beside a model is a recipe again
    assert by_name.summary == "letters in alphabetical order"


def test_unknown_and_ambiguous_names(make_letters_plugin, entry_point, tmp_path, monkeypatch):
    with pytest.raises(UnknownComponentError, match=r"unknown recipe 'leters'\. Did you mean 'letters'"):
        load_recipe("leters")
    with pytest.raises(OptionError, match=r"no recipe file 'absent\.yaml'"):
        load_recipe("absent.yaml")
    monkeypatch.syspath_prepend(str(tmp_path))
    other = make_letters_plugin(tmp_path, "other")
    with (
        use_plugin_host(load_plugins(entry_points=[entry_point, other])),
        pytest.raises(AmbiguousComponentError, match="acme/letters or other/letters"),
    ):
        load_recipe("letters")


def test_overrides_are_typed_and_reach_into_options():
    recipe = load_recipe("letters", ["training.max_steps=9", "model.config.hidden_size=64", "data.options.longest=5"])
    assert recipe.training["max_steps"] == 9
    assert recipe.model.config["hidden_size"] == 64
    assert recipe.data.options == {"longest": 5}
    assert load_recipe("letters", ["max-steps=9", "time_epsilon=0.1", "eval_count=3"]) == load_recipe(
        "letters", ["training.max_steps=9", "objective.time_epsilon=0.1", "data.eval_count=3"]
    )
    assert load_recipe("letters", ["summary=x"]).summary == "x"
    assert load_recipe("letters", ["tokenizer.path=x", "tokenizer.builder=null"]).tokenizer.path == "x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.eval_counts=3", "section data: unknown option 'eval_counts'. Did you mean 'eval_count'"),
        ("date.eval_count=3", "unknown option 'date'. Did you mean 'data'"),
        ("model.checkpoint=x", "either checkpoint, or adapter"),
        ("data.train_file=x", "either generator, train_file or dataset"),
        ("data.eval_count=-1", "data.eval_count must be at least 0"),
        ("data.train_count=0", "data.train_count must be at least 1"),
        ("data.eval_count=many", "eval_count must be a whole number"),
        ("training.output_dir=x", "leave out output_dir"),
        ("seed=3", "seed is in several sections; write data.seed=... or training.seed=..."),
        ("max_stps=3", "no section of a recipe has a key 'max_stps'. Did you mean 'max_steps'"),
        ("training.max_steps", "must have the form section.key=value"),
        ("model.config=3", "model.config must be a mapping"),
        ("summary.x=3", "summary must be a mapping"),
    ],
)
def test_bad_overrides_are_refused(override, message):
    with pytest.raises(OptionError) as caught:
        load_recipe("letters", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_step=3", "section training: unknown option 'max_step'. Did you mean 'max_steps'"),
        ("training.lr_scheduler_type=cosin", "section training: "),
        ("training.learning_rate=fast", "learning_rate must be a number"),
        ("objective.weightin=uniform", "Did you mean 'weighting'"),
        ("objective.time_epsilon=2", "time_epsilon must be at least 0 and below 1"),
        ("objective.name=mdml", "Did you mean 'mdlm'"),
        ("model.adapter=acne", "Did you mean 'acme'"),
    ],
)
def test_a_dry_run_finds_what_only_training_would(override, message):
    result = CliRunner().invoke(command, ["--recipe", "letters", "--dry-run", override])
    assert message in str(result.exception)
    assert isinstance(result.exception, dllm.UsageError)


def test_malformed_files(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("model: [unclosed")
    with pytest.raises(OptionError, match="is not valid YAML"):
        load_recipe(file)
    file.write_text("- a list")
    with pytest.raises(OptionError, match="must be a mapping"):
        load_recipe(file)
    with pytest.raises(OptionError, match="option 'data' is required"):
        parse_recipe({"model": {"checkpoint": "x"}})


# -------------------------------------------------------------------------------------------------------- training


def test_a_trained_folder_loads_and_says_how_it_was_made(trained):
    denoiser = dllm.load(trained, device="cpu")
    assert denoiser.mask_token_id == 1
    assert denoiser.model.config.is_causal is False
    assert denoiser.tokenizer("a b")["input_ids"] == [3, 4]
    assert load_recipe(trained / "recipe.yaml") == load_recipe("letters")
    names = {file.name for file in trained.iterdir()}
    assert {"config.json", "model.safetensors", "recipe.yaml", "checkpoints"} <= names
    assert ".saving" not in names
    assert not any(name.endswith(".bin") for name in names)
    modes = {(trained / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1
    state = json.loads((trained / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "eval_nll" in entry] == [3, 6]


def test_a_resumed_training_ends_in_the_same_weights(trained, tmp_path):
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    shutil.copytree(trained / "checkpoints" / "checkpoint-2", out / "checkpoints" / "checkpoint-2")
    broken = out / "checkpoints" / "checkpoint-4"  # killed while it was written
    shutil.copytree(trained / "checkpoints" / "checkpoint-4", broken)
    (broken / "trainer_state.json").write_text("{")
    assert newest_checkpoint(out / "checkpoints").name == "checkpoint-2"
    (out / ".saving").mkdir()  # killed while it was published
    (out / ".saving" / "rest").touch()
    train(load_recipe("letters"), out, resume=True)
    want, got = weights(trained), weights(out)
    assert set(want) == set(got)
    assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.slow
def test_compiled_training_computes_the_same(trained, tmp_path):
    out = train(load_recipe("letters", ["training.compile=true"]), tmp_path / "out")
    want, got = weights(trained), weights(out)
    assert set(want) == set(got)  # the names do not tell that it was compiled
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=2e-4, rtol=1e-3)


def test_activation_checkpointing_trains_the_same_bits(trained, tmp_path):
    out = train(load_recipe("letters", ["training.activation_checkpointing=true"]), tmp_path / "out")
    want, got = weights(trained), weights(out)
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_evaluation_needs_examples(tmp_path):
    with pytest.raises(OptionError, match="eval_strategy='steps' needs examples to evaluate on; set data"):
        train(load_recipe("letters", ["data.eval_count=0"]), tmp_path / "out")


def test_a_model_is_not_overwritten(trained):
    with pytest.raises(OptionError, match="holds a model already"):
        train(load_recipe("letters"), trained)


def test_training_goes_on_from_a_model_with_a_file_of_data(trained, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "a b c"}\n{"text": "b c d e"}\n' * 8)
    mapping = {
        "model": {"checkpoint": str(trained)},
        "data": {"train_file": str(file), "eval_file": str(file), "eval_count": 4},
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "use_cpu": True, "save_strategy": "no"},
    }
    out = train(parse_recipe(mapping), tmp_path / "out")
    before, after = weights(trained), weights(out)
    assert set(before) == set(after)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert dllm.load(out, device="cpu").tokenizer.mask_token_id == 1


def test_a_hugging_face_model_and_tokenizer_train_as_they_are(trained, tmp_path):
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    before = model.lm_head.weight.detach().clone()
    args = dllm.MDLMConfig(output_dir=str(tmp_path), max_steps=1, use_cpu=True, save_strategy="no", disable_tqdm=True)
    examples = [{"input_ids": [3, 4, 5]}, {"input_ids": [4, 5, 6, 7]}]
    trainer = dllm.MDLMTrainer(model, args, processing_class=tokenizer, train_dataset=examples)
    assert trainer.denoiser.mask_token_id == 1
    trainer.train()
    assert not torch.equal(model.lm_head.weight.detach(), before)
    with use_plugin_host(load_plugins(entry_points=[])), pytest.raises(ModelLoadError, match="'llama'"):
        dllm.MDLMTrainer(model, args, processing_class=tokenizer)


def test_command_reports_where_the_model_is(tmp_path):
    out = tmp_path / "out"
    arguments = ["--recipe", "letters", "--output", str(out), "--json", "training.max_steps=1", "data.eval_count=0"]
    arguments += ["training.eval_strategy=no"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert json.loads(result.stdout) == {"output": str(out)}
    assert "step 1/1" in result.stderr
    assert yaml.safe_load((out / "recipe.yaml").read_text())["training"]["max_steps"] == 1


def test_command_needs_an_output():
    result = CliRunner().invoke(command, ["--recipe", "letters"])
    assert result.exit_code == 2
    assert "Missing option '--output'" in result.stderr


# -------------------------------------------------------------------------------------------------------- examples


def test_loader_workers_make_the_batches_of_one_process():
    def count_up(count):
        yield from ({"input_ids": [number]} for number in range(count))

    stream = GeneratedExamples(count_up, {"count": 22}, batch_size=4)
    assert len(stream) == 22
    read = [
        [row["input_ids"][0] for row in batch]
        for batch in torch.utils.data.DataLoader(stream, batch_size=4, num_workers=2, collate_fn=list)
    ]
    assert read[:5] == [list(range(start, start + 4)) for start in range(0, 20, 4)]
    assert sorted(number for batch in read for number in batch) == list(range(22))


def test_files_of_examples(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"input_ids": [3, 4], "labels": [-100, 4]}\n\n{"text": "a b c"}\n{"text": "d"}\n')
    recipe = load_recipe("letters")
    tokenizer = import_string(recipe.tokenizer.builder)()
    assert read_examples(file, tokenizer, limit=2) == [
        {"input_ids": [3, 4], "labels": [-100, 4]},
        {"input_ids": [3, 4, 5]},
    ]
    with pytest.raises(DataError, match="line 3: text needs a tokenizer"):
        read_examples(file, None)
    for line, message in [
        ("{", "line 1: not JSON"),
        ('{"a": 1}', "line 1: an example needs"),
        ("", "holds no example"),
    ]:
        file.write_text(line + "\n")
        with pytest.raises(DataError, match=message):
            read_examples(file, tokenizer)
    with pytest.raises(DataError, match="no data file"):
        read_examples(tmp_path / "absent.jsonl", tokenizer)
