"""Caches on every installed family that has one: the same modelling code, no copy of it."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import dllm_core as dllm
from dllm_core.conformance.adapter_suite import random_ids
from dllm_core.errors import OptionError
from dllm_core.samplers import MDLMSampler
from tests.families import adapter_suites, name_of

OPTIONS = {"max_new_tokens": 9, "block_size": 3, "stop_at_eos": False}
CACHES = ("prefix", "dual", "vicinity", "delayed", "interval")
families = pytest.mark.parametrize("suite", list(adapter_suites()), ids=name_of)


@cache
def denoiser(suite) -> dllm.Denoiser:
    return suite().denoiser()


@pytest.mark.parametrize("lengths", [(4, 4), (5, 2)], ids=["even", "ragged"])
@families
def test_a_refresh_every_step_is_no_cache(suite, lengths):
    """Even batches take no attention pattern, ragged ones do; both read keys from the cache's own slots."""
    model = denoiser(suite)
    if not model.adapter.supports_kv_cache:
        with pytest.raises(OptionError, match="declares no KV cache"):
            MDLMSampler(model, cache="dual")
        return
    prompts = [random_ids(model, length, seed=number).tolist() for number, length in enumerate(lengths)]
    plain = list(MDLMSampler(model, **OPTIONS).stream(prompts))
    for name in CACHES:
        sampler = MDLMSampler(model, cache=name, refresh_every=1, **OPTIONS)
        for step, want in zip(sampler.stream(prompts), plain, strict=True):
            assert torch.equal(step.input_ids, want.input_ids)
            torch.testing.assert_close(step.confidence, want.confidence, equal_nan=True, rtol=1e-4, atol=1e-5)


@families
def test_an_even_batch_is_what_its_rows_are_in_a_ragged_one(suite):
    """Without a refresh: a pattern that hides nothing, and no pattern, are one."""
    model = denoiser(suite)
    if not model.adapter.supports_kv_cache:
        return
    even = [random_ids(model, 4, seed=seed).tolist() for seed in (1, 2)]
    for name in CACHES:
        sampler = MDLMSampler(model, cache=name, **OPTIONS)
        steps = [list(sampler.stream(prompts)) for prompts in (even, [*even, random_ids(model, 6, seed=3).tolist()])]
        for alone, together in zip(*steps, strict=True):
            assert torch.equal(together.input_ids[:2, :13], alone.input_ids)
            torch.testing.assert_close(
                together.confidence[:2, :13], alone.confidence, equal_nan=True, rtol=1e-4, atol=1e-5
            )
