"""Small LLaDA models, and figures of the published code to hold them against."""

from __future__ import annotations

import pytest
import torch
from dllm_llada import LLaDAConfig, LLaDAModelLM
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

TINY = {
    "vocab_size": 50,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "mlp_hidden_size": 48,
    "max_sequence_length": 64,
    "mask_token_id": 49,
}


@pytest.fixture
def tiny():
    """Build a small model in evaluation mode from changed config fields; the same weights at every call."""

    def build(attn_implementation: str = "sdpa", seed: int = 0, **fields: object) -> LLaDAModelLM:
        config = LLaDAConfig(**(TINY | fields))
        config._attn_implementation = attn_implementation
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LLaDAModelLM(config).eval()

    return build


@pytest.fixture
def ids() -> torch.Tensor:
    """(2, 12) int64."""
    return torch.randint(0, 49, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def published_config() -> dict[str, object]:
    """What ``config.json`` of LLaDA-8B-Base, -Instruct and LLaDA-1.5 says."""
    return {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": 4096,
        "embedding_dropout": 0.0,
        "embedding_size": 126464,
        "eos_token_id": 126081,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": 126336,
        "max_sequence_length": 4096,
        "mlp_hidden_size": 12288,
        "mlp_ratio": 4,
        "multi_query_attention": None,
        "n_heads": 32,
        "n_kv_heads": 32,
        "n_layers": 32,
        "pad_token_id": 126081,
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "use_cache": False,
        "vocab_size": 126464,
        "weight_tying": False,
    }


@pytest.fixture
def attention_probe():
    """(name, calls): an attention implementation under ``name`` that notes its calls and then attends by sdpa."""
    calls: list[tuple] = []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def probe(module, query, key, value, attention_mask, **options):
        calls.append((module, query, key, options))
        return sdpa(module, query, key, value, attention_mask, **options)

    AttentionInterface.register("probe", probe)
    yield "probe", calls
    AttentionInterface._global_mapping.pop("probe")
