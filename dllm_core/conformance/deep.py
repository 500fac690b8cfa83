"""A small transformer with random weights, for what the exact toy cannot show.

The toy has one layer, so what it keeps of a position is that position's own token. From the second layer on, keys and
values depend on everything that a position could see when it was computed: only there is a cache stale that was filled
through the wrong pattern, at the wrong positions, or too early.
"""

from __future__ import annotations

import torch

from dllm_core.models.adapter import ModelAdapter
from dllm_core.models.denoiser import Denoiser

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


class DeepAdapter(ModelAdapter):
    """The conventions of the model: no shift, takes a cache and attention patterns."""

    model_types = ("deep-toy",)
    supports_kv_cache = True
    supports_block_causal = True


def deep_denoiser(
    vocab: int, length: int, *, eos: int | None = None, pad: int | None = None, shifted: bool = False, seed: int = 0
) -> Denoiser:
    """Three layers in float64; the mask token is id ``vocab``, prompts are token ids.

    Args:
        length: the longest input.
        eos, pad: tokens with that part to play.
        shifted: the denoiser takes row i of the logits for the scores of the token at i + 1.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab + 1, num_key_value_heads=1, max_position_embeddings=length, rope_theta=100.0, **SIZES
    )
    config.is_causal = False
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights, which are replaced
        model = LlamaForCausalLM(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) / weight.shape[-1] ** 0.5)
    given = {name: token for name, token in {"mask": vocab, "eos": eos, "pad": pad}.items() if token is not None}
    return Denoiser(model, DeepAdapter(), special_ids=given, logits_are_shifted=shifted)
