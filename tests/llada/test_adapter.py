"""What the plugin declares, and loading through it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dllm_llada
import pytest
import torch
from dllm_llada import LLaDAAdapter, LLaDAConfig, LLaDAModelLM
from dllm_llada.plugin import dllm_model_adapters

from dllm_core.errors import ModelLoadError, OptionError
from dllm_core.models import Denoiser, block_causal_pattern, load

GOLDENS = Path(__file__).parent / "goldens"
SPECIAL = {"mask": 255, "eos": 254, "pad": 254, "bos": 253}


def test_the_plugin_module_imports_nothing_heavy():
    code = (
        "import sys, dllm_llada, dllm_llada.plugin as p; specs = list(p.dllm_model_adapters()); "
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'safetensors'} & set(sys.modules); "
        "assert not heavy, heavy; print(specs[0].name, dllm_llada.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["llada", dllm_llada.__version__]


def test_the_package_offers_its_classes_lazily():
    assert dllm_llada.LLaDAAdapter is LLaDAAdapter
    assert set(dllm_llada.__all__) <= set(dir(dllm_llada))
    with pytest.raises(AttributeError, match="no attribute 'LladaConfig'"):
        dllm_llada.LladaConfig  # noqa: B018


def test_the_spec_names_the_adapter():
    spec = next(iter(dllm_model_adapters()))
    module, _, name = spec.target.partition(":")
    assert getattr(sys.modules[module], name) is LLaDAAdapter
    assert spec.model_types == LLaDAAdapter.model_types == (LLaDAConfig.model_type,)
    assert [checkpoint.name for checkpoint in spec.bundled] == ["llada-tiny"]


def test_lora_targets_are_all_linear_layers_of_the_blocks():
    fields = {"d_model": 32, "n_heads": 4, "n_layers": 1, "vocab_size": 8, "mlp_hidden_size": 8}
    model = LLaDAAdapter().build_model(LLaDAConfig(**fields))
    linear = {
        name.rpartition(".")[2]
        for name, module in model.model.blocks[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert linear == set(LLaDAAdapter.lora_targets)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_load_gives_a_denoiser(implementation):
    folder = GOLDENS / "mha"
    denoiser = load(folder, device="cpu", special_ids=SPECIAL, attn_implementation=implementation)
    assert isinstance(denoiser.model, LLaDAModelLM)
    assert denoiser.model.config._attn_implementation == implementation
    assert (denoiser.context_length, denoiser.vocab_size, denoiser.dtype) == (512, 256, torch.float32)
    assert not denoiser.logits_are_shifted
    ids = torch.arange(24).reshape(2, 12)
    want = denoiser.model(ids).logits
    at = torch.tensor([[3, 1], [0, 11]])
    torch.testing.assert_close(denoiser.logits(ids, at=at), torch.stack((want[0, [3, 1]], want[1, [0, 11]])))
    chosen = torch.zeros(2, 12, dtype=torch.bool)
    chosen[0, 5] = chosen[1, 2] = True
    torch.testing.assert_close(denoiser.logits(ids, at=chosen), want[chosen])
    pattern = block_causal_pattern(12, 4)
    torch.testing.assert_close(
        denoiser.logits(ids, attention=pattern), denoiser.model(ids, attention_mask=pattern).logits
    )


@torch.no_grad()
@pytest.mark.parametrize("left", [True, False])
def test_a_denoiser_gives_a_padded_row_what_it_gets_alone(left):
    denoiser = load(GOLDENS / "gqa", device="cpu", special_ids={"mask": 249})
    ids, mask = torch.arange(24).reshape(2, 12), torch.ones(2, 12, dtype=torch.bool)
    real = slice(4, 12) if left else slice(0, 8)
    mask[0] = False
    mask[0, real] = True
    got = denoiser.logits(ids, mask)
    torch.testing.assert_close(got[:1, real], denoiser.logits(ids[:1, real]), atol=1e-5, rtol=1e-4)


def test_a_checkpoint_without_mask_token_says_so():
    with pytest.raises(ModelLoadError, match=r"<\|mdm_mask\|>.*special_ids"):
        load(GOLDENS / "mha", device="cpu")


def test_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelLoadError, match=r"model_type 'bert'.*'llada'"):
        load(tmp_path, device="cpu", adapter="llada", special_ids={"mask": 1})


def test_a_config_that_cannot_be_computed_is_refused_by_field(tmp_path):
    config = (GOLDENS / "mha" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"block_type": "llama"', '"block_type": "parallel"'))
    with pytest.raises(ModelLoadError, match=r"block_type='parallel'.*'llama', 'sequential'"):
        load(tmp_path, device="cpu", special_ids=SPECIAL)


def test_flash_attention_takes_no_pattern():
    denoiser = load(GOLDENS / "mha", device="cpu", special_ids=SPECIAL)
    denoiser.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(OptionError, match="flash_attention_2"):
        denoiser.logits(torch.zeros(1, 8, dtype=torch.long), attention=block_causal_pattern(8, 4))


def test_it_declares_what_it_can():
    adapter = LLaDAAdapter()
    assert (adapter.supports_kv_cache, adapter.supports_block_causal, adapter.logits_are_shifted) == (True, True, False)
    assert (
        Denoiser(
            adapter.build_model(LLaDAConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=9, mlp_hidden_size=8)),
            adapter,
            special_ids={"mask": 8},
        ).eot_token_ids
        == ()
    )
