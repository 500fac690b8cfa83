"""LoRA: one forward of the wrapped model, adapters that load only where they belong, merging, and 4-bit bases."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import dllm_core as dllm
from dllm_core.cli import root
from dllm_core.errors import ModelLoadError, OptionError
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.lora import (
    RECORD_FILE,
    LoraSection,
    add_lora,
    check_same_adapter,
    head_name,
    merge_lora,
    read_record,
)
from dllm_core.models.merging import merge_checkpoint
from dllm_core.plugins import load_plugins, use_plugin_host

PLUGIN = """
from dllm_core import ModelAdapter, ModelAdapterSpec, hookimpl

class Adapter(ModelAdapter):
    model_types = ("llama",)
    config_class = "transformers:LlamaConfig"
    model_class = "transformers:LlamaForCausalLM"
    lora_targets = ("q_proj", "v_proj", "up_proj", "down_proj")

class Other(Adapter):
    model_types = ("mistral",)
    config_class = "transformers:MistralConfig"
    model_class = "transformers:MistralForCausalLM"
    lora_targets = "all-linear"

@hookimpl
def dllm_model_adapters():
    for name, cls in (("acme", Adapter), ("other", Other)):
        yield ModelAdapterSpec(name=name, summary="a family", source="original", target=f"acme_lora:{cls.__name__}",
                               model_types=cls.model_types)
"""
IDS = {"mask": 15, "eos": 1, "pad": 0}
SMALL = LoraSection(r=2, alpha=4)
INPUT = torch.tensor([[3, 15, 5, 15, 7], [9, 8, 15, 15, 0]])
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], dtype=torch.bool)
MASKED = (INPUT == 15) & REAL


def tiny_llama(**fields) -> LlamaForCausalLM:
    config = LlamaConfig(
        **{
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": 16,
            "max_position_embeddings": 16,
            "is_causal": False,
            "initializer_range": 0.3,
            **fields,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(fields.get("vocab_size", 0))
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def entry_point(tmp_path_factory) -> Iterator[EntryPoint]:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "acme_lora.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield EntryPoint(name="acme", value="acme_lora", group="dllm")


@pytest.fixture(autouse=True)
def _installed(entry_point):
    with use_plugin_host(load_plugins(entry_points=[entry_point])):
        yield


@pytest.fixture
def base(tmp_path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(base: Path, **options) -> Denoiser:
    return dllm.load(base, device="cpu", special_ids=IDS, **options)


def disturb(denoiser: Denoiser) -> Denoiser:
    """B starts at zero: give it values, as training would."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in denoiser.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return denoiser


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    return save(disturb(add_lora(load(base), SMALL)), tmp_path / "adapter")


def save(denoiser: Denoiser, folder: Path) -> Path:
    denoiser.model.save_pretrained(folder)
    denoiser.lora.write(folder)
    return folder


def scores(denoiser: Denoiser) -> torch.Tensor:
    with torch.no_grad():
        return denoiser.logits(INPUT, REAL, at=MASKED)


# --------------------------------------------------------------------------------------------- the wrapped model


def test_fresh_lora_changes_nothing_and_trains_nothing_else(base):
    plain = load(base)
    want = scores(plain)
    denoiser = add_lora(plain, SMALL)
    assert torch.equal(scores(denoiser), want)
    trained = [name for name, parameter in denoiser.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in trained}
    assert adapted == {"q_proj", "v_proj", "up_proj", "down_proj"}  # the family's


def test_the_seed_fixes_the_matrices_and_leaves_the_global_state_alone(base):
    before = torch.random.get_rng_state()
    first, again, other = (
        torch.cat(
            [p.flatten() for n, p in add_lora(load(base), SMALL, seed=s).model.named_parameters() if "lora_A" in n]
        )
        for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_forward_and_rows_before_the_head(base):
    """Row selection reaches through peft's wrapper, and the model that peft wraps runs once."""
    denoiser = disturb(add_lora(load(base), SMALL))
    calls, rows = [], []
    inner = denoiser.model.get_base_model()
    handles = [
        inner.register_forward_hook(lambda *_: calls.append(1)),
        inner.get_output_embeddings().register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape)),
    ]
    got = denoiser.logits(INPUT, REAL, at=MASKED)
    for handle in handles:
        handle.remove()
    assert calls == [1]
    assert rows == [(1, 4, 32)]
    torch.testing.assert_close(got, denoiser.logits(INPUT, REAL)[MASKED])
    got.sum().backward()
    assert all(p.grad is not None for n, p in denoiser.model.named_parameters() if "lora_" in n)


@pytest.mark.parametrize("shifted", [False, True])
def test_the_shift_is_kept(base, tmp_path, shifted):
    """Also where it is not what the family declares: the adapter says what it was trained with."""
    denoiser = disturb(add_lora(load(base, logits_are_shifted=shifted), SMALL))
    folder = save(denoiser, tmp_path / "adapter")
    loaded = load(base, lora=folder)
    assert loaded.logits_are_shifted is shifted
    torch.testing.assert_close(scores(loaded), scores(denoiser))
    assert load(base, lora=folder, logits_are_shifted=not shifted).logits_are_shifted is not shifted


def test_the_vocabulary_head_is_never_adapted(base):
    """Not even where a target ends like the head's name."""
    denoiser = load(base)
    head = denoiser.model.get_output_embeddings()
    denoiser.model.model.layers[0].mlp.lm_head = torch.nn.Linear(32, 32)
    assert head_name(denoiser.model) == "lm_head"
    wrapped = add_lora(denoiser, LoraSection(r=2, alpha=4, targets=("lm_head",)))
    assert wrapped.model.get_base_model().get_output_embeddings() is head
    assert "lora" in str(wrapped.model.get_base_model().model.layers[0].mlp.lm_head).lower()


def test_all_linear(base):
    denoiser = add_lora(load(base), LoraSection(r=2, alpha=4, targets="all-linear"))
    adapted = {
        name.split(".lora_")[0].rpartition(".")[2] for name, _ in denoiser.model.named_parameters() if "lora_" in name
    }
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("on_head", [False, True])
def test_the_chunked_loss_reaches_through_the_adapter(base, on_head):
    """Also where someone else's adapter sits on the vocabulary head itself: the same values and gradients."""
    denoiser = add_lora(load(base), SMALL)
    if on_head:
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head", "q_proj"])
        denoiser = Denoiser(get_peft_model(load(base).model, config), denoiser.adapter, special_ids=IDS)
    disturb(denoiser)
    trained = [parameter for parameter in denoiser.model.parameters() if parameter.requires_grad]
    targets = torch.arange(10).view(2, 5) + 2
    want = torch.nn.functional.cross_entropy(
        denoiser.logits(INPUT, REAL, at=MASKED).float(), targets[MASKED], reduction="none"
    )
    got = denoiser.nll(INPUT, REAL, at=MASKED, targets=targets)
    torch.testing.assert_close(got, want)
    for first, second in zip(*(torch.autograd.grad(loss.sum(), trained) for loss in (got, want)), strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ saving, loading


def test_an_adapter_gives_what_was_saved(base, adapter):
    want = scores(disturb(add_lora(load(base), SMALL)))
    loaded = load(base, lora=adapter)
    assert torch.equal(scores(loaded), want)
    assert not torch.equal(scores(load(base)), want)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert read_record(adapter).model_type == "llama"
    assert not any("lm_head" in name or "embed" in name for name in load_file(adapter / "adapter_model.safetensors"))


def test_an_adapter_loads_in_half_precision_too(base, adapter):
    loaded = load(base, lora=adapter, dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    torch.testing.assert_close(scores(loaded).float(), scores(load(base, lora=adapter)), atol=0.3, rtol=0.1)


def test_an_adapter_of_another_program(base, adapter):
    want = scores(load(base, lora=adapter))
    (adapter / RECORD_FILE).unlink()
    assert torch.equal(scores(load(base, lora=adapter)), want)


def test_merged_equals_unmerged(base, adapter):
    denoiser = load(base, lora=adapter)
    want = scores(denoiser)
    merged = merge_lora(denoiser)
    assert type(merged.model) is LlamaForCausalLM
    torch.testing.assert_close(scores(merged), want, atol=1e-5, rtol=1e-5)
    with pytest.raises(OptionError, match="no LoRA adapter to merge"):
        merge_lora(merged)


# -------------------------------------------------------------------------------------------------------- mistakes


def test_another_base_of_the_same_shape(base, adapter, tmp_path):
    other = tiny_llama()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelLoadError, match=r"trained on other weights than these .*base.*delete dllm_lora.json"):
        load(tmp_path / "other", lora=adapter)
    (adapter / RECORD_FILE).unlink()
    load(tmp_path / "other", lora=adapter)


@pytest.mark.parametrize("with_record", [True, False])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 1}, "which this model lacks"),
        ({"intermediate_size": 48}, r"is \d+ wide there and \d+ here"),
    ],
)
def test_another_architecture(adapter, tmp_path, fields, message, with_record):
    tiny_llama(**fields).save_pretrained(tmp_path / "other")
    if not with_record:
        (adapter / RECORD_FILE).unlink()
    with pytest.raises(ModelLoadError, match=message):
        load(tmp_path / "other", lora=adapter)


def test_another_family(base, adapter, tmp_path):
    shutil.copytree(base, tmp_path / "other")
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    with pytest.raises(ModelLoadError, match="for model type 'llama', this model is 'mistral'"):
        load(tmp_path / "other", lora=adapter)


def test_what_is_no_adapter(base, adapter, tmp_path):
    with pytest.raises(ModelLoadError, match=r"no LoRA adapter 'absent/one/two'"):
        load(base, lora="absent/one/two")
    with pytest.raises(ModelLoadError, match=r"adapter_config.json is missing; it holds a whole model"):
        load(base, lora=base)
    with pytest.raises(ModelLoadError, match="is a LoRA adapter, not a whole model; load its base"):
        load(adapter)
    config = adapter / "adapter_config.json"
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text) | {"peft_type": "IA3"}))
    with pytest.raises(ModelLoadError, match="of type 'IA3'; only LORA"):
        load(base, lora=adapter)
    config.write_text(text)
    (adapter / RECORD_FILE).write_text("{}")
    with pytest.raises(ModelLoadError, match="is damaged"):
        load(base, lora=adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"lacks adapter_model.safetensors"):
        load(base, lora=adapter)


def test_targets_that_match_nothing(base):
    with pytest.raises(OptionError, match=r"'qproj' matches no layer of LlamaForCausalLM\. Did you mean 'q_proj'\?"):
        add_lora(load(base), LoraSection(targets=("v_proj", "qproj")))
    with pytest.raises(OptionError, match=r"'lm_head' matches no layer"):
        add_lora(load(base), LoraSection(targets=("lm_head",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "lora.r must be at least 1"),
        ({"alpha": 0}, "lora.alpha must be at least 1"),
        ({"dropout": 1.0}, "lora.dropout must be at least 0 and below 1"),
        ({"targets": "q_proj"}, r"must be a list of layer names or 'all-linear', got 'q_proj'; write \[q_proj\]"),
        ({"targets": ()}, "lora.targets is empty"),
    ],
)
def test_options(options, message):
    with pytest.raises(OptionError, match=message):
        LoraSection(**options)


def test_lora_on_lora(base, adapter):
    with pytest.raises(OptionError, match="has a LoRA adapter already; merge it first"):
        add_lora(load(base, lora=adapter), SMALL)


def test_resuming_with_another_adapter(base, adapter):
    check_same_adapter(add_lora(load(base), SMALL), adapter)
    check_same_adapter(load(base), base)
    for section, message in [
        (LoraSection(r=4, alpha=4), r"trained with lora.r=2, the recipe says 4"),
        (LoraSection(r=2, alpha=8), r"lora.alpha=4, the recipe says 8"),
        (LoraSection(r=2, alpha=4, targets=("q_proj",)), r"lora.targets=\['down_proj'"),
    ]:
        with pytest.raises(OptionError, match=message):
            check_same_adapter(add_lora(load(base), section), adapter)
    with pytest.raises(OptionError, match="is of LoRA, this recipe is for full training; add section lora"):
        check_same_adapter(load(base), adapter)
    with pytest.raises(OptionError, match="is of full training, this recipe is for LoRA; leave out section lora"):
        check_same_adapter(add_lora(load(base), SMALL), base)


def test_missing_packages_say_what_to_install(base, adapter, monkeypatch):
    find, missing = importlib.util.find_spec, ("peft", "bitsandbytes")
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n in missing else find(n, *a))
    with pytest.raises(OptionError, match=r"pip install 'dllm-core\[train\]'"):
        load(base, lora=adapter)
    with pytest.raises(OptionError, match=r"bitsandbytes: pip install 'dllm-core\[quantization\]'"):
        load(base, load_in_4bit=True)


# ---------------------------------------------------------------------------------------------------------- 4 bits


@pytest.fixture
def wide(tmp_path) -> Path:
    """Wide enough for blocks of 64 weights."""
    tiny_llama(hidden_size=64, intermediate_size=128, initializer_range=0.05).save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


def test_four_bits_on_the_cpu(wide):
    dequantize_4bit = pytest.importorskip("bitsandbytes").functional.dequantize_4bit
    whole, quantised = load(wide), load(wide, load_in_4bit=True)
    layer = quantised.model.model.layers[0].mlp.up_proj
    assert type(layer).__name__ == "Linear4bit"
    assert layer.weight.dtype == torch.uint8
    assert quantised.model.get_output_embeddings().weight.dtype == torch.float32  # the head stays as it was
    rounded = load(wide)
    for name, module in quantised.model.named_modules():
        if hasattr(module.weight if hasattr(module, "weight") else None, "quant_state"):
            values = dequantize_4bit(module.weight.data, module.weight.quant_state)
            rounded.model.get_submodule(name).weight.data = values
    torch.testing.assert_close(scores(quantised), scores(rounded), atol=0.01, rtol=0)
    assert (scores(rounded) - scores(whole)).abs().max() > 0.02


def test_qlora_learns_and_merges_into_whole_weights(wide, tmp_path):
    pytest.importorskip("bitsandbytes")
    denoiser = add_lora(load(wide, load_in_4bit=True), SMALL)
    # The packed ones change their layout when they are first used backwards.
    before = {
        name: value.clone()
        for name, value in denoiser.model.named_parameters()
        if "lora_" not in name and value.is_floating_point()
    }
    optimizer = torch.optim.AdamW([p for p in denoiser.model.parameters() if p.requires_grad], lr=0.05)
    targets = torch.tensor([2, 3, 4, 5])
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(denoiser.logits(INPUT, REAL, at=MASKED), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    after = dict(denoiser.model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    folder = save(denoiser, tmp_path / "qlora")
    again = load(wide, load_in_4bit=True, lora=folder)  # the base is recognised in spite of its rounding
    torch.testing.assert_close(scores(again), scores(load(wide, load_in_4bit=True, lora=folder)))
    with pytest.raises(OptionError, match="merging into 4-bit weights"):
        merge_lora(again)
    exact = load(wide, lora=folder)
    want = scores(exact)
    torch.testing.assert_close(scores(merge_lora(exact)), want, atol=1e-5, rtol=1e-5)


def test_damaged_weights_are_not_taken(base, adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value[:1] for name, value in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelLoadError):
        load(base, lora=adapter)


# ----------------------------------------------------------------------------------------------------- dllm merge


def words():
    """A tokenizer of 16 words."""
    backend = Tokenizer(models.WordLevel({f"w{number}": number for number in range(16)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="w15", eos_token="w1", pad_token="w0")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_merge_command(base, adapter, tmp_path, dtype, tolerance):
    words().save_pretrained(base)
    want = scores(dllm.load(base, lora=adapter, device="cpu"))
    arguments = ["merge", str(base), str(adapter), str(tmp_path / "new/merged"), "--dtype", dtype, "--json"]
    result = CliRunner().invoke(root, arguments, catch_exceptions=False)
    assert json.loads(result.stdout) == {"output": str(tmp_path / "new/merged")}
    merged = dllm.load(tmp_path / "new/merged", device="cpu")
    assert merged.mask_token_id == 15
    assert merged.model.config.is_causal is False
    torch.testing.assert_close(scores(merged), want, atol=tolerance, rtol=tolerance)
    assert {value.dtype for value in load_file(tmp_path / "new/merged/model.safetensors").values()} == {
        getattr(torch, dtype)
    }
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new/merged"]  # nothing left beside it


def test_merging_keeps_the_bits_of_what_has_no_adapter(base, adapter, tmp_path):
    model = tiny_llama().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    merge_checkpoint(tmp_path / "half", adapter, tmp_path / "merged")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("half", "merged"))
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "v_proj", "up_proj", "down_proj"}
    assert {value.dtype for value in after.values()} == {torch.bfloat16}


@pytest.mark.parametrize("shifted", [False, True])
def test_a_merged_model_keeps_the_shift(base, tmp_path, shifted):
    denoiser = disturb(add_lora(load(base, logits_are_shifted=shifted), SMALL))
    merge_checkpoint(base, save(denoiser, tmp_path / "adapter"), tmp_path / "merged")
    merged = load(tmp_path / "merged")
    assert merged.logits_are_shifted is shifted
    torch.testing.assert_close(scores(merged), scores(denoiser), atol=1e-5, rtol=1e-5)


def test_merge_refuses(base, adapter, tmp_path):
    with pytest.raises(OptionError, match="exists already; name a new folder"):
        merge_checkpoint(base, adapter, adapter)
    with pytest.raises(ModelLoadError, match="no LoRA adapter in"):
        merge_checkpoint(base, tmp_path, tmp_path / "merged")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(OptionError, match="is quantised"):
        merge_checkpoint(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_failed_merge_leaves_nothing(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        merge_checkpoint(base, adapter, tmp_path / "new" / "merged")
    assert list((tmp_path / "new").iterdir()) == []
