"""Every architecture with shifted logits; tests/test_matrix.py has them as converted, with all that is installed."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from dllm_a2d import adapter as adapters
from dllm_a2d.architectures import ARCHITECTURES
from dllm_a2d.tiny import architecture, build_tokenizer, diffusion_config

import dllm_core as dllm
from dllm_core import registry

SOURCES = [row.source_type for row in ARCHITECTURES]
SAMPLERS = [entry.name for entry in registry.components("sampler") if entry.plugin == "core"]
PROMPTS = [[10, 11, 12], [20], [30, 31, 32, 33, 34, 35, 36]]
NEW = 12


@cache
def shifted_denoiser(source: str) -> dllm.Denoiser:
    family = getattr(adapters, f"A2D{architecture(source).name}Adapter")()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = family.build_model(diffusion_config(source)).eval()
        for weight in model.parameters():
            weight.data.add_(0.1 * torch.randn_like(weight))
    tokenizer = family.prepare_tokenizer(build_tokenizer(source))
    return dllm.Denoiser(model, family, tokenizer, logits_are_shifted=True)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_row_is_sampled_as_it_is_alone(source, name):
    options = {"block_size": 4, "steps": 6, "stop_at_eos": False, "max_new_tokens": NEW}
    sampler = dllm.sampler(name, shifted_denoiser(source), **options)
    together = sampler.sample(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        length = len(prompt) + NEW
        written = together.sequences[row, :length]
        assert written[: len(prompt)].tolist() == prompt
        assert not (written == sampler.denoiser.mask_token_id).any()
        assert torch.equal(sampler.sample(prompt).sequences[0, :length], written)
