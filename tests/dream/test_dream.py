"""Dream: names as published, logits shifted and attending both ways, and a tokenizer without remote code."""

from __future__ import annotations

import json

import pytest
import torch
from dllm_dream.adapter import DreamAdapter
from dllm_dream.models import DreamConfig, DreamModel

import dllm_core as dllm

# config.json of Dream-org/Dream-v0-Instruct-7B, the fields that decide shapes
PUBLISHED = {
    "model_type": "Dream",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "mask_token_id": 151666,
}
SPECIAL = ("<|endoftext|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")


def test_the_released_size_is_that_in_its_name():
    with torch.device("meta"):
        model = DreamModel(DreamConfig.from_dict(PUBLISHED))
    assert round(model.num_parameters() / 1e8) == 76
    names = set(model.state_dict())
    assert {"model.layers.27.self_attn.q_proj.bias", "lm_head.weight", "model.norm.weight"} <= names
    assert "model.layers.0.self_attn.o_proj.bias" not in names


@pytest.fixture
def checkpoint(tmp_path):
    """A small random Dream with a tokenizer as the hub has it: vocabulary, merges, and a class of its own."""
    letters = [*"abcdefgh", "Ġ"]
    ids = {token: number for number, token in enumerate([*letters, "ab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    added = {str(len(ids) + n): {"content": text, "special": True} for n, text in enumerate(SPECIAL)}
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {key: value | flags for key, value in added.items()},
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "bos_token": "<|beginoftext|>",
        "mask_token": "<|mask|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DreamModel(DreamConfig(vocab_size=16, num_key_value_heads=1, initializer_range=0.3, **sizes))
    model.save_pretrained(tmp_path)
    return tmp_path


def test_the_tokenizer_loads_without_code_from_the_checkpoint(checkpoint):
    denoiser = dllm.load(checkpoint, device="cpu")
    assert isinstance(denoiser.adapter, DreamAdapter)
    assert denoiser.tokenizer("ab ba")["input_ids"] == [9, 8, 1, 0]
    assert (denoiser.mask_token_id, denoiser.eos_token_id, denoiser.pad_token_id) == (13, 10, 10)
    assert denoiser.eot_token_ids == (11,)


@torch.no_grad()
def test_rows_score_the_next_token_and_see_both_ways(checkpoint):
    denoiser = dllm.load(checkpoint, device="cpu")
    ids = torch.randint(9, (1, 6), generator=torch.Generator().manual_seed(0))
    raw, straight = denoiser.model(input_ids=ids).logits, denoiser.logits(ids)
    torch.testing.assert_close(straight[:, 1:], raw[:, :-1])
    torch.testing.assert_close(straight[:, 0], raw[:, 0])
    later = ids.clone()
    later[0, -1] = (later[0, -1] + 1) % 9
    assert not torch.allclose(denoiser.model(input_ids=later).logits[0, 0], raw[0, 0])


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(checkpoint, implementation, side):
    denoiser = dllm.load(checkpoint, device="cpu", attn_implementation=implementation)
    ids = torch.randint(9, (2, 9), generator=torch.Generator().manual_seed(0))
    real = slice(0, 5) if side == "right" else slice(4, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0] = False
    mask[0, real] = True
    got = denoiser.logits(ids, mask)
    torch.testing.assert_close(got[:1, real], denoiser.logits(ids[:1, real]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got[1:], denoiser.logits(ids[1:]), atol=1e-5, rtol=1e-4)


def test_it_generates_trains_and_scores(checkpoint, tmp_path):
    denoiser = dllm.load(checkpoint, device="cpu")
    out = dllm.sampler("mdlm", denoiser, max_new_tokens=6, steps=3, stop_at_eos=False).sample(["ab", "ab ba"])
    assert not (out.sequences == denoiser.mask_token_id).any()
    args = dllm.MDLMConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    examples = [{"input_ids": [0, 1, 2, 3]}, {"input_ids": [3, 2, 1, 0]}]
    result = dllm.MDLMTrainer(denoiser, args, train_dataset=examples).train()
    assert result.global_step == 2
