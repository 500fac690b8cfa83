"""Every architecture with every sampler and objective of the core."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from dllm_a2d import adapter as adapters
from dllm_a2d.architectures import ARCHITECTURES
from dllm_a2d.tiny import architecture, build_tokenizer, diffusion_config

import dllm_core as dllm
from dllm_core import registry
from dllm_core.conformance.adapter_suite import random_ids

SOURCES = [row.source_type for row in ARCHITECTURES]
SAMPLERS = [entry.name for entry in registry.components("sampler") if entry.plugin == "core"]
OBJECTIVES = [entry.name for entry in registry.components("objective") if entry.plugin == "core"]
PROMPTS = [[10, 11, 12], [20], [30, 31, 32, 33, 34, 35, 36]]
NEW = 12


@cache
def denoiser(source: str, *, shifted: bool = False) -> dllm.Denoiser:
    family = getattr(adapters, f"A2D{architecture(source).name}Adapter")()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = family.build_model(diffusion_config(source)).eval()
        for weight in model.parameters():
            weight.data.add_(0.1 * torch.randn_like(weight))
    tokenizer = family.prepare_tokenizer(build_tokenizer(source))
    return dllm.Denoiser(model, family, tokenizer, logits_are_shifted=shifted)


@pytest.mark.parametrize("shifted", [False, True], ids=["plain", "shifted"])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_row_is_sampled_as_it_is_alone(source, name, shifted):
    options = {"block_size": 4, "steps": 6, "stop_at_eos": False, "max_new_tokens": NEW}
    sampler = dllm.sampler(name, denoiser(source, shifted=shifted), **options)
    together = sampler.sample(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        length = len(prompt) + NEW
        written = together.sequences[row, :length]
        assert written[: len(prompt)].tolist() == prompt
        assert not (written == sampler.denoiser.mask_token_id).any()
        assert torch.equal(sampler.sample(prompt).sequences[0, :length], written)


@pytest.mark.parametrize("source", SOURCES)
def test_the_cache_changes_nothing(source):
    options = {"block_size": 4, "steps": 6, "stop_at_eos": False, "max_new_tokens": NEW}
    runs = [
        dllm.sampler("bd3lm", denoiser(source), cache=cache, **options).sample(PROMPTS) for cache in ("block", "none")
    ]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    assert runs[0].stats.positions_processed < runs[1].stats.positions_processed


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("source", SOURCES)
def test_padding_does_not_change_a_loss(source, name):
    """The loss of a ragged batch, summed, is that of its rows."""
    model = denoiser(source)
    options = {"block_size": 4} if name == "bd3lm" else {}
    objective = dllm.objective(name, normalization="sequence", **options)
    ids = random_ids(model, 2, 16)
    mask = torch.arange(16) < torch.tensor([[16], [8]])
    batch = {"input_ids": ids, "labels": ids.masked_fill(~mask, -100), "attention_mask": mask}
    corruption = objective.corrupt(batch, model, generator=torch.Generator().manual_seed(0))
    whole = objective.loss(model, batch, corruption)
    assert whole.loss.isfinite()
    changed = {**batch, "input_ids": ids.where(mask, 99)}
    hidden = corruption.input_ids.where(mask, 99)
    other = objective.loss(model, changed, type(corruption)(**{**vars(corruption), "input_ids": hidden}))
    torch.testing.assert_close(whole.nll_sum, other.nll_sum, rtol=1e-5, atol=1e-5)
    whole.loss.backward()
    head = model.model.get_output_embeddings().weight
    assert head.grad is not None
    assert head.grad.isfinite().all()
