"""Every field of config.json is read, and one that the model does not compute is refused by name."""

from __future__ import annotations

import json
import re

import pytest
from dllm_llada import LLaDAConfig, LLaDAModelLM
from transformers import AutoConfig, DynamicCache, StaticCache

from dllm_core.errors import ModelLoadError


def test_the_published_config_is_read_whole(published_config):
    config = LLaDAConfig.from_dict(dict(published_config))
    assert {name: getattr(config, name) for name in published_config} == published_config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (4096, 32, 32)
    assert (config.num_key_value_heads, config.head_dim, config.intermediate_size) == (32, 128, 12288)
    assert (config.max_position_embeddings, config.tie_word_embeddings, config.embedding_rows) == (4096, False, 126464)


def test_the_defaults_are_those_of_llada_8b(published_config):
    built = LLaDAConfig().to_dict()
    not_architecture = {
        "eos_token_id",
        "pad_token_id",
        "mask_token_id",
        "architectures",
        "embedding_size",
        "n_kv_heads",
    }
    for name, value in published_config.items():
        if name in built and name not in not_architecture:
            assert built[name] == value, name
    assert (LLaDAConfig().embedding_rows, LLaDAConfig().num_key_value_heads) == (126464, 32)


def test_a_field_left_out_of_a_file_gets_the_published_default_not_ours():
    config = LLaDAConfig.from_dict({"model_type": "llada", "rope": True})
    assert (config.block_type, config.activation_type, config.layer_norm_type) == ("sequential", "swiglu", "default")
    assert (config.d_model, config.n_heads, config.n_layers, config.vocab_size) == (768, 12, 12, 50257)
    assert (config.weight_tying, config.rope_theta, config.embedding_rows) == (True, 10000.0, 50304)
    with pytest.raises(ModelLoadError, match="rope=False"):
        LLaDAConfig.from_dict({"model_type": "llada"})


def test_a_saved_config_leaves_nothing_to_defaults(tmp_path):
    config = LLaDAConfig(d_model=64, n_heads=4, weight_tying=True)
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    own = {name for name in LLaDAConfig.__annotations__ if name not in ("keys_to_ignore_at_inference", "attribute_map")}
    assert own <= set(stored)
    assert len(own) == 39
    assert LLaDAConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LLaDAConfig)


def test_own_names_win_over_aliases_in_a_file(published_config):
    config = LLaDAConfig.from_dict(published_config | {"tie_word_embeddings": True, "hidden_size": 64})
    assert (config.weight_tying, config.d_model) == (False, 4096)
    assert LLaDAConfig.from_dict({"hidden_size": 96, "rope": True}).d_model == 96


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope": False}, "rope=False; it must be one of [True]"),
        ({"alibi": True}, "alibi=True"),
        ({"block_type": "parallel"}, "block_type='parallel'; it must be one of ['llama', 'sequential']"),
        ({"layer_norm_type": "low_precision"}, "layer_norm_type='low_precision'"),
        ({"activation_type": "tanh"}, "activation_type='tanh'"),
        ({"activation_type": "swiglu"}, "activation_type='swiglu'"),
        ({"activation_type": "swiglu", "block_type": "sequential", "mlp_hidden_size": 7}, "mlp_hidden_size=7"),
        ({"init_fn": "xavier"}, "init_fn='xavier'"),
        ({"n_heads": 5}, "n_heads=5; it must be a divisor of d_model=4096"),
        ({"d_model": 96}, "n_heads=32"),
        ({"d_model": 0}, "d_model=0"),
        ({"n_layers": "32"}, "n_layers='32'"),
        ({"n_kv_heads": 5}, "n_kv_heads=5; it must be a divisor of n_heads=32"),
        ({"n_kv_heads": 0}, "n_kv_heads=0"),
        ({"n_kv_heads": 4, "multi_query_attention": True}, "n_kv_heads=4; it must be 1 or null"),
        ({"n_kv_heads": 4, "multi_query_attention": False}, "n_kv_heads=4; it must be 32 or null"),
        ({"embedding_size": 100}, "embedding_size=100; it must be at least vocab_size=126464"),
        ({"block_group_size": 5}, "block_group_size=5; it must be a divisor of n_layers=32"),
        ({"mlp_hidden_size": 0}, "mlp_hidden_size=0"),
        ({"attention_dropout": 1.0}, "attention_dropout=1.0"),
        ({"residual_dropout": -0.1}, "residual_dropout=-0.1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling="),
        ({"num_experts": 64}, "num_experts=64"),
    ],
)
def test_what_the_model_does_not_compute_is_refused_by_name(fields, message):
    with pytest.raises(ModelLoadError, match=re.escape(message)) as caught:
        LLaDAConfig(**fields)
    assert "\n" not in str(caught.value)


def test_a_field_set_later_is_checked_before_a_model_is_built():
    config = LLaDAConfig(d_model=32, n_heads=4, n_layers=1, vocab_size=8, mlp_hidden_size=8)
    config.n_heads = 3
    with pytest.raises(ModelLoadError, match="n_heads=3"):
        LLaDAModelLM(config)


@pytest.mark.parametrize(
    ("fields", "heads"),
    [
        ({}, 32),
        ({"multi_query_attention": True}, 1),
        ({"multi_query_attention": False}, 32),
        ({"n_kv_heads": 8}, 8),
        ({"n_kv_heads": 1, "multi_query_attention": True}, 1),
    ],
)
def test_key_and_value_heads(fields, heads):
    assert LLaDAConfig(**fields).num_key_value_heads == heads


def test_caches_can_be_made_from_it():
    config = LLaDAConfig(n_layers=3)
    assert len(DynamicCache(config=config).layers) == 3
    assert len(StaticCache(config=config, max_cache_len=8).layers) == 3
