"""`dllm convert --to editflow`: what it writes, what it refuses, and LoRA beside the heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dllm_editflow.converting import convert, with_heads
from dllm_editflow.models.families import FAMILIES, HEADS
from dllm_editflow.reading import read_edits
from safetensors.torch import load_file

import dllm_core as dllm
from dllm_core.cli import main
from dllm_core.conformance.adapter_suite import random_ids
from dllm_core.errors import ModelLoadError
from dllm_core.models.converting import convert_checkpoint
from dllm_core.models.lora import LoraSection, add_lora, load_lora, merge_lora
from tests.editflow.conftest import SUITES, save_source

WRITTEN = {
    "edit_rate_form": "hazard",
    "edit_time_embedding": True,
    "edit_vocabulary": "separate",
    "edit_heads_read": "final",
}


def heads(states):
    substitute, insert = states.substitute(states.substitute_hidden), states.insert(states.insert_hidden)
    return torch.cat([states.rates, substitute, insert], -1)


@pytest.fixture
def llada(tmp_path) -> Path:
    """A small LLaDA of its own, to be spoilt."""
    save_source(SUITES["LLaDA"], tmp_path / "llada")
    return tmp_path / "llada"


def edit(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_folder_that_loads_and_says_the_same(source, suite, tmp_path):
    own, folder = source
    converted = convert_checkpoint(folder, tmp_path / "out", to="editflow")
    fields = json.loads((tmp_path / "out/config.json").read_text())
    assert fields["model_type"] == suite().adapter().model_types[0]
    assert {name: fields[name] for name in WRITTEN} == WRITTEN
    loaded = dllm.load(tmp_path / "out", device="cpu")
    assert loaded.logits_are_shifted is own.logits_are_shifted
    assert loaded.mask_token_id == own.mask_token_id
    ids = random_ids(own, 2, 10)
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(ids), own.logits(ids), atol=1e-5, rtol=1e-5)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert {name.partition(".")[0] for name in after.keys() - before.keys()} == set(HEADS) - {"insert_mix"}
    assert any("edit heads" in note for note in converted.notes)


def test_what_was_trained_comes_back(converted, tmp_path):
    with torch.no_grad():
        for index, weight in enumerate(converted.model.parameters()):
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)))
    converted.model.save_pretrained(tmp_path)
    converted.tokenizer.save_pretrained(tmp_path)
    loaded = dllm.load(tmp_path, device="cpu")
    ids, time = random_ids(converted, 2, 10), torch.tensor([0.2, 0.7])
    with torch.no_grad():
        first, again = (read_edits(each, ids, None, time=time, reader=heads) for each in (converted, loaded))
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", ["editflow", "editflow-qwen3", "editflow/editflow-llada"])
def test_plugin_and_adapters_name_the_converter(name, llada, tmp_path):
    """What the checkpoint is decides, not which adapter was named."""
    convert_checkpoint(llada, tmp_path / "out", to=name)
    assert dllm.load(tmp_path / "out", device="cpu").bare_model.config.model_type == "editflow-llada"


def test_a_bundled_checkpoint_by_its_name(tmp_path, capsys):
    assert main(["convert", "--to", "editflow", "llada-tiny", str(tmp_path / "out"), "--json"]) == 0
    told = capsys.readouterr()
    assert "5% of the tokens" in json.loads(told.out)["notes"][-1]
    assert "MISSING" not in told.err
    with torch.no_grad():
        own, loaded = (dllm.load(name, device="cpu") for name in ("llada-tiny", tmp_path / "out"))
        ids = own.tokenizer("12+34=46", return_tensors="pt")["input_ids"]
        assert torch.equal(own.logits(ids), loaded.logits(ids))


def test_a_shift_that_the_checkpoint_states_is_kept(tmp_path):
    """A converted causal model may have been trained with its own convention."""
    save_source(SUITES["Qwen3"], tmp_path / "source")
    edit(tmp_path / "source", logits_are_shifted=True)
    convert_checkpoint(tmp_path / "source", tmp_path / "out", to="editflow", logits_are_shifted=True)
    own, loaded = (dllm.load(tmp_path / name, device="cpu") for name in ("source", "out"))
    ids = random_ids(own, 1, 8)
    with torch.no_grad():
        said = read_edits(loaded, ids, None, time=None, reader=lambda s: s.substitute(s.substitute_hidden))
        torch.testing.assert_close(said, own.logits(ids), atol=1e-5, rtol=1e-5)
        alone = loaded.model(input_ids=ids, edits=lambda s: s.substitute(s.substitute_hidden))
    assert torch.equal(alone, said)  # the model knows, without a denoiser around it


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, "quantised"),
        ({"scale_logits": True}, "behind the vocabulary head"),
        ({"model_type": "qwen3"}, "left to right.*--to a2d"),
        ({"model_type": "unheard-of"}, "no installed plugin serves"),
        ({"num_experts": 4}, "LLaDAMoEAdapter, which has no edit heads"),
    ],
)
def test_what_cannot_be_converted_is_said_before_weights_are_read(fields, told, llada):
    edit(llada, **fields)
    (llada / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=told):
        convert(str(llada), dtype=torch.float32)


def test_a_shift_that_is_not_the_sources_is_refused(llada):
    with pytest.raises(ModelLoadError, match="leave out --shift"):
        convert(str(llada), dtype=torch.float32, logits_are_shifted=True)


def test_heads_are_given_once(llada, tmp_path):
    convert_checkpoint(llada, tmp_path / "out", to="editflow")
    with pytest.raises(ModelLoadError, match="has edit heads already"):
        convert(str(tmp_path / "out"), dtype=torch.float32)


def test_a_checkpoint_that_is_not_whole_is_refused(llada):
    from safetensors.torch import save_file

    weights = load_file(llada / "model.safetensors")
    left = {name: weight for name, weight in weights.items() if "blocks.0.attn_norm" not in name}
    save_file(left, llada / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lacks 1 weights.*attn_norm"):
        convert(str(llada), dtype=torch.float32)


def test_every_model_type_is_named_once():
    assert len({row.model_type for row in FAMILIES}) == len(FAMILIES) == len(SUITES)


@pytest.mark.parametrize("targets", [None, "all-linear"], ids=["the family's", "all"])
def test_lora_trains_and_saves_the_heads_whole(suite, targets, tmp_path):
    """No low-rank matrix in them; they are trained, written beside the matrices, loaded and merged."""
    denoiser = add_lora(suite().denoiser(), LoraSection(r=2, alpha=4, targets=targets), base="-")
    names = [name for name, weight in denoiser.model.named_parameters() if weight.requires_grad]
    trained = {part for name in names for part in HEADS if f".{part}." in name}
    assert trained == set(HEADS) - {"insert_mix"}
    assert not any(part in name for name in names if "lora_" in name for part in HEADS)
    ids, time = random_ids(denoiser, 2, 8), torch.tensor([0.2, 0.7])
    read_edits(denoiser, ids, None, time=time, reader=heads).square().mean().backward()
    with torch.no_grad():
        for name, weight in denoiser.model.named_parameters():
            if weight.requires_grad:
                assert weight.grad is not None, name
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        want = read_edits(denoiser, ids, None, time=time, reader=heads)
        denoiser.model.save_pretrained(tmp_path)
        denoiser.lora.write(tmp_path)
        loaded = load_lora(suite().denoiser(), tmp_path)
        assert torch.equal(read_edits(loaded, ids, None, time=time, reader=heads), want)
        merged = read_edits(merge_lora(loaded), ids, None, time=time, reader=heads)
    torch.testing.assert_close(merged, want, atol=1e-4, rtol=1e-4)


def test_a_configuration_keeps_its_own_fields(suite):
    row = next(row for row in FAMILIES if row.name == suite.family)
    own = suite.own().tiny_config()
    made = with_heads(row, own)
    assert made.hidden_size == own.hidden_size
    assert made.num_hidden_layers == own.num_hidden_layers
    assert type(made)(**made.to_dict()).to_dict() == made.to_dict()


def test_in_four_bits_the_heads_stay_whole_and_learn(tmp_path):
    pytest.importorskip("bitsandbytes")
    own = SUITES["Dream"]().denoiser()
    own.model.save_pretrained(tmp_path / "base")
    own.tokenizer.save_pretrained(tmp_path / "base")
    packed = dllm.load(tmp_path / "base", device="cpu", load_in_4bit=True)
    whole = {name for name, module in packed.model.named_modules() if type(module) is torch.nn.Linear}
    assert {name.partition(".")[0] for name in whole} == {"lm_head", *HEADS} - {"insert_mix"}
    denoiser = add_lora(packed, LoraSection(r=2, alpha=4), base="-")
    ids = random_ids(denoiser, 2, 8)
    read_edits(denoiser, ids, None, time=torch.tensor([0.2, 0.7]), reader=heads).square().mean().backward()
    wanted = [weight for weight in denoiser.model.parameters() if weight.requires_grad]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in wanted)
