"""``dllm run`` takes the sampler that a family was made for, and leaves the others alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dllm_llada.conformance import role_tokenizer
from dllm_llada.llada2 import LLaDA2MoeConfig, LLaDA2MoeModelLM

from dllm_core.cli import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llada2")
    tokenizer = role_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LLaDA2MoeModelLM(LLaDA2MoeConfig(vocab_size=len(tokenizer), **sizes, **heads, **experts))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "sampler"),
    [
        ([], "llada/llada2"),
        (["--plugin", "llada"], "llada/llada2"),
        (["--sampler", "llada21"], "llada/llada21"),
        (["--sampler", "mdlm"], "core/mdlm"),
    ],
)
def test_the_family_has_its_sampler_unless_another_is_named(checkpoint, capsys, arguments, sampler):
    assert main(["run", "hi", "--model", str(checkpoint), "--max-new-tokens", "8", "--json", *arguments]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["sampler"] == sampler
    if sampler != "core/mdlm":
        assert record["options"]["threshold"] == 0.95
        assert record["stats"]["cache_bytes"] > 0


def test_the_plugins_other_families_keep_the_masked_sampler(capsys):
    for arguments in ([], ["--plugin", "llada"]):
        assert main(["run", "1+1=", "--model", "llada-tiny", "--max-new-tokens", "4", "--json", *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["sampler"] == "core/mdlm"
