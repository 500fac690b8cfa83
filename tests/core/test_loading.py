"""`dllm.load`: what it finds where, and a one-line answer to every checkpoint that cannot be loaded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import dllm_core as dllm
from dllm_core.errors import DllmError, ModelLoadError, OptionError, UnknownComponentError
from dllm_core.models.loading import pick_device, pick_dtype
from dllm_core.models.told import weights_told
from dllm_core.plugins import load_plugins, use_plugin_host

PLUGIN = """
    @hookimpl
    def dllm_model_adapters():
        yield ModelAdapterSpec(
            name="encoder", summary="s", target="encoder_family:EncoderAdapter", source="original",
            model_types=("bert",),
            bundled=(BundledCheckpoint(name="encoder-tiny", summary="s", resource="encoder_data:tiny"),),
        )
        yield ModelAdapterSpec(
            name="other", summary="s", target="encoder_family:OtherAdapter", source="original", model_types=("other",),
            converter="encoder_family:convert", converts=("gpt16",),
        )
"""
FAMILY = """
from dllm_core.models import ModelAdapter

class EncoderAdapter(ModelAdapter):
    model_types = ("bert",)
    config_class = "transformers:BertConfig"
    model_class = "transformers:BertForMaskedLM"
    mask_token = "[M]"
    chat_template = "{{ messages }}"

class OtherAdapter(EncoderAdapter):
    model_types = ("other",)
"""
WORDS = ("a", "b", "[M]", "<eos>")
IDS = {"mask": 2, "eos": 3}


def save_checkpoint(folder: Path) -> None:
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForMaskedLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_checkpoint(folder)
    return folder


@pytest.fixture
def checkpoint(saved, distributions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy of the checkpoint's folder, to be spoiled; its family is installed, and ships it too."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "encoder_family.py").write_text(FAMILY)
    (tmp_path / "encoder_data").mkdir()
    (tmp_path / "encoder_data/__init__.py").touch()
    shutil.copytree(saved, tmp_path / "encoder_data/tiny")
    shutil.copytree(saved, tmp_path / "checkpoint")
    with use_plugin_host(load_plugins(entry_points=[distributions("encoders", PLUGIN)])):
        yield tmp_path / "checkpoint"


def test_a_folder_and_a_bundled_name_and_a_path_object(checkpoint, saved):
    ids = torch.tensor([[0, 1, 2]])
    with torch.no_grad():
        want = BertForMaskedLM.from_pretrained(saved, dtype=torch.float32).eval()(ids).logits
        for name in (str(checkpoint), checkpoint, "encoder-tiny"):
            denoiser = dllm.load(name, device="cpu")
            torch.testing.assert_close(denoiser.logits(ids), want)
            assert not denoiser.model.training
            assert type(denoiser.adapter).__name__ == "EncoderAdapter"
    assert denoiser.context_length == 16


def test_the_tokenizer_gets_the_familys_mask_token_and_template(checkpoint):
    denoiser = dllm.load(checkpoint)
    assert denoiser.tokenizer.mask_token == "[M]"
    assert denoiser.tokenizer.chat_template == "{{ messages }}"
    assert (denoiser.mask_token_id, denoiser.eos_token_id) == (2, 3)
    own = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[M]": 1, "a": 0}, unk_token="a")))
    given = dllm.load(checkpoint, tokenizer=own)
    assert given.tokenizer is own
    assert given.mask_token_id == 1


def test_special_ids_win_and_need_no_tokenizer(checkpoint):
    assert dllm.load(checkpoint, special_ids={"mask": 0}).mask_token_id == 0
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    denoiser = dllm.load(checkpoint, special_ids=IDS)
    assert denoiser.tokenizer is None
    assert (denoiser.mask_token_id, denoiser.eos_token_id, denoiser.pad_token_id) == (2, 3, 3)
    refuses(checkpoint, ModelLoadError, ["no mask token", "special_ids={'mask': ID}"])


@pytest.mark.parametrize(
    ("dtype", "want"),
    [
        ("auto", torch.float32),  # on the CPU
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes(checkpoint, dtype, want):
    assert dllm.load(checkpoint, dtype=dtype, device="cpu").dtype == want


def test_other_choices(checkpoint):
    denoiser = dllm.load(checkpoint, attn_implementation="eager", logits_are_shifted=True, adapter="encoder")
    assert denoiser.model.config._attn_implementation == "eager"
    assert denoiser.logits_are_shifted
    assert not dllm.load(checkpoint).logits_are_shifted


def test_devices_and_dtypes_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(torch.device("cpu")) == torch.device("cpu")
    assert isinstance(pick_device("auto"), torch.device)
    assert pick_dtype("float16") == torch.float16
    assert pick_dtype("auto") == "auto"


def refuses(name: object, error: type[DllmError], words: list[str], **options: object) -> None:
    with pytest.raises(error) as caught:
        dllm.load(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "quantum"}, OptionError, ["device", "'quantum'", "'cpu'"]),
        ({"device": "cuda:77"}, OptionError, ["device", "'cuda:77'", "cpu"]),
        ({"device": ""}, OptionError, ["device"]),
        ({"dtype": "int8"}, OptionError, ["dtype", "'int8'", "bfloat16"]),
        ({"dtype": torch.int64}, OptionError, ["dtype", "int64", "bfloat16"]),
        ({"dtype": None}, OptionError, ["dtype", "None"]),
        ({"attn_implementation": "fast"}, OptionError, ["attn_implementation", "'fast'", "sdpa"]),
        ({"lora": "x"}, ModelLoadError, ["'x'", "no such folder", "owner/name"]),
        ({"adapter": "encodr"}, UnknownComponentError, ["'encodr'", "Did you mean 'encoder'?"]),
        (
            {"adapter": "other"},
            ModelLoadError,
            ["OtherAdapter serves model types other", "'bert'", "leave out adapter="],
        ),
        ({"special_ids": {"mask": 4}}, ModelLoadError, ["mask=4", "embedding of 4 rows", "0 to 3"]),
        ({"special_ids": {"eos": 1, "msk": 2}}, OptionError, ["'msk'", "mask, eos"]),
    ],
)
def test_bad_options(checkpoint, options, error, words):
    refuses(checkpoint, error, words, **options)


def test_flex_attention_on_the_cpu_warns():
    warns = pytest.warns(UserWarning, match="^torch computes flex_attention wrongly .* use attn_implementation='sdpa'")
    with warns, pytest.raises(ModelLoadError):
        dllm.load("no/such-folder", device="cpu", attn_implementation="flex_attention")


def test_an_attention_implementation_that_is_not_installed(checkpoint):
    if find_spec("flash_attn"):
        pytest.skip("it is installed here")
    words = ["checkpoint", "FlashAttention2", "installed"]
    refuses(checkpoint, ModelLoadError, words, attn_implementation="flash_attention_2")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing-here", ["'nothing-here'", "not a folder", "encoder-tiny", "owner/name"]),
        ("./nothing", ["'./nothing'", "not a folder"]),
        ("/nowhere/at/all", ["'/nowhere/at/all'", "not a folder"]),
        ("", ["not a folder"]),
        ("nobody/nothing", ["'nobody/nothing'", "hub did not give it", "network"]),
    ],
)
@pytest.mark.usefixtures("checkpoint")
def test_unknown_models(name, words):
    refuses(name, ModelLoadError, words)


def rewrite_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))

    return change


def write(file: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(text) and None


def cut_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.0.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def unsafe_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


SPOILED = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ["no config.json", "give the folder that holds"]),
    "broken JSON": (write("config.json", '{"model_type": '), ["config.json", "not valid JSON", "download"]),
    "a list": (write("config.json", "[1, 2]"), ["config.json", "a JSON object"]),
    "bytes": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), ["config.json", "not valid JSON"]),
    "unserved model type": (
        rewrite_config(model_type="gpt17"),
        ["'gpt17'", "no installed plugin serves", "bert, other", "install the plugin"],
    ),
    "code of its own": (
        rewrite_config(model_type="gpt17", auto_map={"AutoModel": "modeling_gpt17.GPT17"}),
        ["'gpt17'", "(auto_map) is never run", "bert, other"],
    ),
    "autoregressive": (
        rewrite_config(model_type="gpt16"),
        ["left to right", "dllm convert --to encoders MODEL FOLDER"],
    ),
    "no model type": (rewrite_config(model_type=None), ["names no model_type", "adapter="]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["checkpoint", "model.safetensors"]),
    "half of the weights": (cut_weights, ["checkpoint"]),
    "a weight is missing": (drop_a_weight, ["lacks 1 weights of BertForMaskedLM", "output.dense.weight", "not whole"]),
    "weights of another shape": (rewrite_config(intermediate_size=12), ["checkpoint"]),
    "weights that could run code": (unsafe_weights, ["checkpoint", "safetensors"]),
    "broken tokenizer": (write("tokenizer.json", "{"), ["checkpoint"]),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILED.values(), ids=SPOILED)
def test_spoiled_checkpoints(checkpoint, spoil, words):
    spoil(checkpoint)
    refuses(checkpoint, ModelLoadError, words)


def test_no_plugin_at_all(checkpoint):
    with use_plugin_host(load_plugins(entry_points=[])):
        refuses(checkpoint, ModelLoadError, ["no installed plugin serves model_type 'bert'", "install"])


def test_loading_says_nothing_on_the_way(checkpoint, capfd):
    dllm.load(checkpoint)
    out, err = capfd.readouterr()
    assert re.sub(r"\s", "", out + err) == ""


def test_every_weight_that_is_read_and_every_file_that_is_written_is_told(saved, tmp_path):
    told = []
    with weights_told(lambda *how_far: told.append(how_far)):
        model = BertForMaskedLM.from_pretrained(saved)
        model.save_pretrained(tmp_path / "one")
        model.save_pretrained(tmp_path / "many", max_shard_size="1KB")
    with safe_open(saved / "model.safetensors", "pt") as file:
        weights = len(file.keys())
    shards = len(list((tmp_path / "many").glob("*.safetensors")))
    assert shards > 1
    read = [(done, weights, "Loading weights") for done in range(weights + 1)]
    whole = [(done, None, "Writing weights") for done in range(2)]
    assert told == [*read, *whole, *((done, shards, "Writing weights") for done in range(shards + 1))]
    told.clear()
    BertForMaskedLM.from_pretrained(saved)
    assert told == []
