"""LLaDA-MoE and LLaDA 2.x: the published figures and names, experts in grouped products, and what is refused."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from dllm_llada.llada2 import LLaDA2MoeConfig, LLaDA2MoeModelLM
from dllm_llada.moe import LLaDAMoEConfig, LLaDAMoEModelLM
from safetensors.torch import load_file
from transformers.integrations import moe

import dllm_core as dllm
from dllm_core.errors import ModelLoadError
from dllm_core.models import block_causal_pattern

GOLDENS = Path(__file__).parent / "goldens"
VARIANTS = ("moe", "llada2", "llada21")
CASES = [
    (variant, case)
    for variant in VARIANTS
    for case in json.loads((GOLDENS / variant / "cases.json").read_text())["cases"]
    if case["kind"] == "logits"
]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
# config.json of inclusionAI/LLaDA-MoE-7B-A1B-Base and inclusionAI/LLaDA2.0-mini, fields that decide shapes
MOE_7B = {
    "model_type": "llada",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "expert_intermediate_size": 1024,
    "dense_intermediate_size": 8192,
    "moe_layer_freq": [1] * 16,
    "qk_layernorm": True,
    "rope_theta": 50000,
    "vocab_size": 157184,
    "norm_topk_prob": None,
}
MINI_2 = {
    "model_type": "llada2_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 1,
    "partial_rotary_factor": 0.5,
    "rope_theta": 600000,
    "use_qkv_bias": False,
    "use_bias": False,
    "vocab_size": 157184,
}


@cache
def denoiser(variant: str, implementation: str = "sdpa") -> dllm.Denoiser:
    ids = json.loads((GOLDENS / variant / "cases.json").read_text())["special_ids"]
    folder = str(GOLDENS / variant)
    return dllm.load(folder, device="cpu", dtype="float32", special_ids=ids, attn_implementation=implementation)


@cache
def tensors(variant: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / variant / "cases.safetensors")


def test_every_case_is_here_and_only_padding_is_a_quirk():
    # LLaDA 2.x published code turns causal once a 2-D mask holds a zero; ours honours the padding instead.
    assert len(CASES) == 29
    tagged = {case["id"] for _, case in CASES if case.get("quirks")}
    assert tagged == {"logits_pad_left", "logits_pad_left_pos", "logits_pad_right", "logits_pad_right_pos"}


PLAIN = [(variant, case) for variant, case in CASES if not case.get("quirks")]


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("variant", "case"), PLAIN, ids=[f"{variant}-{case['id']}" for variant, case in PLAIN])
def test_logits_equal_the_published_ones(variant, case, implementation):
    inputs = {name: tensors(variant)[f"{case['id']}.in.{name}"] for name in case["inputs"]}
    want = tensors(variant)[f"{case['id']}.out.logits"]
    if implementation == "eager" and inputs.get("attention_mask", torch.empty(0)).dim() == 4:
        inputs["attention_mask"] = torch.zeros(1).masked_fill(~inputs["attention_mask"], torch.finfo(torch.float32).min)
    got = denoiser(variant, implementation).model(**inputs).logits
    if case.get("compare_where"):
        keep = inputs["attention_mask"].bool()
        got, want = got[keep], want[keep]
    torch.testing.assert_close(got, want, **case["tolerance"])


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(variant, side):
    model = denoiser(variant)
    ids = torch.randint(0, 150, (2, 12), generator=torch.Generator().manual_seed(0))
    real = slice(0, 7) if side == "right" else slice(5, 12)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0] = False
    mask[0, real] = True
    got = model.logits(ids, mask)
    torch.testing.assert_close(got[:1, real], model.logits(ids[:1, real]), **CLOSE)
    torch.testing.assert_close(got[1:], model.logits(ids[1:]), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_runs_both_ways_and_block_causal_where_asked(variant):
    model = denoiser(variant)
    ids = torch.randint(0, 150, (1, 8), generator=torch.Generator().manual_seed(0))
    later = ids.clone()
    later[0, -1] = 151
    assert not torch.allclose(model.logits(ids)[0, 0], model.logits(later)[0, 0])
    pattern = block_causal_pattern(8, 4)
    first, second = model.logits(ids, attention=pattern), model.logits(later, attention=pattern)
    torch.testing.assert_close(first[0, :4], second[0, :4], **CLOSE)  # other groups of tokens, other rounding
    assert not torch.allclose(first[0, 4], second[0, 4])


@pytest.mark.parametrize(
    ("config", "kind", "experts"),
    [
        (LLaDAMoEConfig.from_dict(MOE_7B), LLaDAMoEModelLM, 64),
        (LLaDA2MoeConfig.from_dict(MINI_2), LLaDA2MoeModelLM, 256),
    ],
    ids=["moe", "llada2"],
)
def test_the_released_sizes_are_those_in_their_names(config, kind, experts):
    with torch.device("meta"):
        model = kind(config)
    billions = round(model.num_parameters() / 1e9)
    assert billions == {LLaDAMoEModelLM: 7, LLaDA2MoeModelLM: 16}[kind]
    assert model.model.layers[-1].mlp.experts.gate_up_proj.shape[0] == experts


@pytest.mark.parametrize("variant", VARIANTS)
def test_saving_gives_back_the_published_names_and_weights(variant, tmp_path):
    denoiser(variant).model.save_pretrained(tmp_path)
    saved, published = load_file(tmp_path / "model.safetensors"), load_file(GOLDENS / variant / "model.safetensors")
    assert saved.keys() == published.keys()
    assert all(torch.equal(saved[name], published[name]) for name in published)
    again = dllm.load(str(tmp_path), device="cpu", special_ids={"mask": 159})
    ids = torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(again.logits(ids), denoiser(variant).logits(ids), atol=0, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_experts_take_two_grouped_products_a_layer_not_one_an_expert(variant, monkeypatch):
    calls: list[torch.Size] = []
    real = moe._grouped_mm

    def counted(*arguments, **options):
        calls.append(arguments[1].shape)
        return real(*arguments, **options)

    monkeypatch.setattr(moe, "_grouped_mm", counted)
    model = denoiser(variant)
    with torch.no_grad():
        model.logits(torch.arange(9)[None])
    sparse = sum(hasattr(layer.mlp, "experts") for layer in model.model.model.layers)
    assert len(calls) == 2 * sparse


def test_experts_learn(tmp_path):
    model = LLaDA2MoeModelLM.from_pretrained(GOLDENS / "llada2", dtype=torch.float32)
    model(input_ids=torch.arange(20)[None]).logits.square().mean().backward()
    experts = model.model.layers[-1].mlp.experts
    assert experts.gate_up_proj.grad.abs().sum() > 0
    assert experts.down_proj.grad.abs().sum() > 0


def test_the_hubs_llada_with_experts_is_recognised(tmp_path):
    fields = json.loads((GOLDENS / "moe" / "config.json").read_text()) | {"model_type": "llada"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes((GOLDENS / "moe" / "model.safetensors").read_bytes())
    found = dllm.load(str(tmp_path), device="cpu", special_ids={"mask": 159})
    assert type(found.adapter).__name__ == "LLaDAMoEAdapter"
    ids = torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(found.logits(ids), denoiser("moe").logits(ids), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (LLaDAMoEConfig, "clip_qkv", 8.0),
        (LLaDAMoEConfig, "shared_expert_intermediate_size", 64),
        (LLaDAMoEConfig, "moe_router_score_function", "sigmoid"),
        (LLaDAMoEConfig, "norm_topk_prob", True),
        (LLaDA2MoeConfig, "use_bias", True),
        (LLaDA2MoeConfig, "use_sliding_window", True),
        (LLaDA2MoeConfig, "num_shared_experts", 0),
    ],
)
def test_what_is_not_computed_is_refused_by_name(config, field, value):
    base = MOE_7B if config is LLaDAMoEConfig else MINI_2
    with pytest.raises(ModelLoadError, match=field):
        config.from_dict(base | {field: value})
