"""`dllm convert --to a2d`: what it writes, what it refuses, and that it writes whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from dllm_a2d.adapter import WITHOUT_THINKING

import dllm_core as dllm
from dllm_core.cli import main
from dllm_core.errors import ComponentLoadError, ModelLoadError, OptionError, UnknownComponentError
from dllm_core.hookspecs import ModelAdapterSpec
from dllm_core.models import converting
from dllm_core.models.converting import convert_checkpoint, find_converter


@pytest.fixture
def source(causal, tmp_path) -> Path:
    """A causal Qwen3 of its own, to be spoilt."""
    return Path(shutil.copytree(causal("qwen3")[0], tmp_path / "source"))


def edit(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("shift", [False, True])
def test_the_shift_stands_in_the_checkpoint(shift, source, tmp_path):
    """And is kept by whoever loads and saves it again; a word of the caller's wins."""
    convert_checkpoint(source, tmp_path / "out", to="a2d", logits_are_shifted=shift)
    first = dllm.load(tmp_path / "out", device="cpu")
    assert first.logits_are_shifted is shift
    assert dllm.load(tmp_path / "out", device="cpu", logits_are_shifted=not shift).logits_are_shifted is not shift
    first.model.save_pretrained(tmp_path / "again")
    first.tokenizer.save_pretrained(tmp_path / "again")
    again = dllm.load(tmp_path / "again", device="cpu")
    assert again.logits_are_shifted is shift
    ids = torch.tensor([[10, 20, 30, 40]])
    rows = again.model(input_ids=ids).logits
    want = torch.cat([rows[:, :1], rows[:, :-1]], 1) if shift else rows
    torch.testing.assert_close(again.logits(ids), want)


def test_without_a_word_of_the_checkpoint_the_family_decides(source, tmp_path):
    convert_checkpoint(source, tmp_path / "out", to="a2d", logits_are_shifted=True)
    fields = json.loads((tmp_path / "out/config.json").read_text())
    del fields["logits_are_shifted"]
    (tmp_path / "out/config.json").write_text(json.dumps(fields))
    assert dllm.load(tmp_path / "out", device="cpu").logits_are_shifted is False


def test_the_tokenizer_knows_the_mask_and_does_not_think(source, tmp_path):
    convert_checkpoint(source, tmp_path / "out", to="a2d")
    tokenizer = dllm.load(tmp_path / "out", device="cpu").tokenizer
    assert (tokenizer.mask_token, tokenizer.pad_token) == ("<|mask|>", "<|endoftext|>")
    assert tokenizer.chat_template.count(WITHOUT_THINKING) == 1
    assert tokenizer("a<|mask|>b")["input_ids"][1] == tokenizer.mask_token_id


def test_types(source, tmp_path):
    convert_checkpoint(source, tmp_path / "out", to="a2d", dtype="bfloat16")
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert dllm.load(tmp_path / "out", device="cpu", dtype="auto").dtype == torch.float32  # on the CPU
    assert dllm.load(tmp_path / "out", device="cpu", dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["a2d", "a2d-qwen3", "a2d/a2d-gpt2"])
def test_plugin_and_adapters_name_the_converter(name):
    assert find_converter(name).__module__ == "dllm_a2d.converting"


def test_unknown_converter_is_named_with_those_there_are():
    with pytest.raises(UnknownComponentError, match=r"'a2b'.*Did you mean 'a2d'.*Converters: a2d"):
        find_converter("a2b")


def test_unsupported_architecture_names_those_supported_and_how_to_add_one(source, tmp_path):
    edit(source, model_type="mamba")
    with pytest.raises(ModelLoadError, match=r"'mamba'.*llama, qwen2.*olmo2.*one row.*architectures\.py") as error:
        convert_checkpoint(source, tmp_path / "out", to="a2d")
    assert "own" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_code_of_an_unsupported_checkpoint_is_not_run(source, tmp_path):
    edit(source, model_type="strange", auto_map={"AutoModelForCausalLM": "modeling.Strange"})
    (source / "modeling.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ModelLoadError, match=r"'strange'.*asks for code of its own, which is never run"):
        convert_checkpoint(source, tmp_path / "out", to="a2d")


def test_code_of_a_supported_checkpoint_is_not_needed(source, tmp_path):
    edit(source, auto_map={"AutoConfig": "modeling.Own", "AutoModelForCausalLM": "modeling.Strange"})
    (source / "modeling.py").write_text("raise SystemExit('it ran')")
    converted = convert_checkpoint(source, tmp_path / "out", to="a2d")
    assert any("not needed" in note for note in converted.notes)
    assert "auto_map" not in json.loads((tmp_path / "out/config.json").read_text())
    assert not (tmp_path / "out/modeling.py").exists()
    assert dllm.load(tmp_path / "out", device="cpu").mask_token_id == len(converted.tokenizer) - 1


def test_published_checkpoints_that_ask_for_code_load_without(source, tmp_path):
    convert_checkpoint(source, tmp_path / "out", to="a2d")
    edit(tmp_path / "out", auto_map={"AutoModel": "modeling.Own"})
    assert type(dllm.load(tmp_path / "out", device="cpu").model).__name__ == "A2DQwen3LMHeadModel"


def test_a_converted_model_is_not_converted_again(source, tmp_path):
    convert_checkpoint(source, tmp_path / "out", to="a2d")
    with pytest.raises(ModelLoadError, match=r"a diffusion model already \(a2d-qwen3\)"):
        convert_checkpoint(tmp_path / "out", tmp_path / "again", to="a2d")


def test_quantised_weights_are_refused(source, tmp_path):
    edit(source, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelLoadError, match="quantised; convert the whole weights"):
        convert_checkpoint(source, tmp_path / "out", to="a2d")


def test_a_checkpoint_without_tokenizer_is_refused(source, tmp_path):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (source / file).unlink()
    with pytest.raises(ModelLoadError, match="has no tokenizer"):
        convert_checkpoint(source, tmp_path / "out", to="a2d")


def test_a_mask_outside_the_embedding_is_refused_when_it_loads(causal, tmp_path):
    """As the published converter leaves Llama 3: a mask token behind a full vocabulary, and no row for it."""
    folder = Path(shutil.copytree(causal("llama", full=True)[0], tmp_path / "published"))
    edit(folder, model_type="a2d-llama")
    with pytest.raises(ModelLoadError, match=r"mask=102 lies outside the embedding of 102 rows.*resize"):
        dllm.load(folder, device="cpu")


def test_output_is_there_whole_or_not_at_all(source, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(OptionError, match="exists already"):
        convert_checkpoint(source, tmp_path / "taken", to="a2d")
    converter = find_converter("a2d")

    def without_disk(*arguments: object, **options: object) -> converting.Converted:
        converted = converter(*arguments, **options)

        def save(folder: str) -> None:
            raise OSError("no space left on device")

        converted.tokenizer.save_pretrained = save  # after the weights are written
        return converted

    monkeypatch.setattr(converting, "find_converter", lambda name: without_disk)
    before = set(tmp_path.iterdir())
    with pytest.raises(OSError, match="no space"):
        convert_checkpoint(source, tmp_path / "out", to="a2d")
    assert set(tmp_path.iterdir()) == before


def test_missing_weights_are_refused(causal, tmp_path):
    folder = Path(shutil.copytree(causal("llama")[0], tmp_path / "source"))
    edit(folder, num_hidden_layers=3)
    with pytest.raises(ModelLoadError, match=r"lacks \d+ weights"):
        convert_checkpoint(folder, tmp_path / "out", to="a2d")
    assert not (tmp_path / "out").exists()


def test_command(source, tmp_path, capsys):
    assert main(["convert", "--to", "a2d", str(source), str(tmp_path / "out"), "--shift"]) == 0
    told = capsys.readouterr()
    assert told.out == f"Converted model in {tmp_path / 'out'}\n"
    assert "mask token '<|mask|>' has id 102" in told.err
    assert dllm.load(tmp_path / "out", device="cpu").logits_are_shifted
    assert main(["convert", "--to", "a2d", str(source), str(tmp_path / "json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "a2d", "nowhere", "out"], "no model 'nowhere'"),
        (["--to", "nothing", "SOURCE", "out"], "no installed plugin converts to 'nothing'"),
        (["--to", "a2d", "SOURCE", "out", "--dtype", "int8"], "dtype must be"),
        (["SOURCE", "out"], "--to"),
    ],
)
def test_command_says_what_is_wrong(arguments, said, source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *(str(source) if word == "SOURCE" else word for word in arguments)]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_plugin_with_a_misspelt_converter_is_told_of(monkeypatch):
    spec = ModelAdapterSpec(
        name="b", summary="-", source="-", target="-", model_types=("b",), converter="no.such:thing"
    )
    component = converting.registry.Component("b", spec)
    monkeypatch.setattr(converting.registry, "components", lambda kind: [component])
    with pytest.raises(ComponentLoadError, match=r"no\.such"):
        find_converter("b")
