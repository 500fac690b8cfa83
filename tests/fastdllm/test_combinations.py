"""Every commit rule of this plugin with every cache policy that is installed, and lookahead with each policy.

Nothing stays masked, and a ragged batch gives each row what it gets alone.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dllm_core as dllm
from dllm_core import registry
from dllm_core.conformance.deep import deep_denoiser
from dllm_core.samplers.view import FULL

VOCAB, MASK, NEW = 12, 12, 12
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
RULES = [part.full_id for part in registry.components("commit rule") if part.plugin in ("core", "fastdllm")]
POLICIES = [
    part.full_id
    for part in registry.components("cache policy")
    if FULL in registry.load("cache policy", part.full_id).serves
]
# Low enough that several tokens are written at once.
BOLD = {"threshold": 0.3, "low_threshold": 0.2, "entropy_bound": 2.0, "kl_threshold": 0.5, "factor": 2.0, "delta": 0.0}


@functools.cache
def denoiser(shifted: bool = False) -> dllm.Denoiser:
    sharp = deep_denoiser(VOCAB, 64, pad=0, eos=11, shifted=shifted)
    with torch.no_grad():
        sharp.model.get_output_embeddings().weight.mul_(8)
    return sharp


def bold(rule: str) -> dict[str, float]:
    names = {field.name for field in dataclasses.fields(registry.load("commit rule", rule))}
    return {name: value for name, value in BOLD.items() if name in names}


def assert_rows_are_alone(sampler: dllm.Sampler) -> None:
    together = sampler.sample(PROMPTS)
    assert not (together.sequences == MASK).any()
    for row, prompt in enumerate(PROMPTS):
        alone = sampler.sample([prompt])
        assert together.sequences[row, : together.lengths[row]].tolist() == alone.sequences[0].tolist()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", RULES)
def test_a_ragged_batch_gives_each_row_what_it_gets_alone(rule, policy):
    options = {"max_new_tokens": NEW, "block_size": 5, "commit": rule, "cache": policy, **bold(rule)}
    assert_rows_are_alone(dllm.sampler("mdlm", denoiser(), **options))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("more", [{}, {"guidance_scale": 1.0}, {"temperature": 1.0}, {"suffix_window": 5}])
def test_lookahead_with_a_cache_gives_each_row_what_it_gets_alone(policy, more):
    options = {"max_new_tokens": NEW, "block_size": 5, "cache": policy, "branches": 3, "threshold": 0.5}
    assert_rows_are_alone(dllm.sampler("fastdllm/lopa", denoiser(), creation_weight=0.0, **options, **more))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_lookahead_with_a_refresh_at_every_step_is_that_without_a_cache(policy, shifted):
    names = {field.name for field in dataclasses.fields(registry.load("cache policy", policy))}
    options = {"max_new_tokens": NEW, "block_size": 5, "branches": 3, "threshold": 0.5, "creation_weight": 0.0}
    plain = dllm.sampler("fastdllm/lopa", denoiser(shifted), **options).sample(PROMPTS)
    often = {"refresh_every": 1} if "refresh_every" in names else {}
    cached = dllm.sampler("fastdllm/lopa", denoiser(shifted), cache=policy, **options, **often).sample(PROMPTS)
    if policy == "core/none" or often:
        assert torch.equal(plain.sequences, cached.sequences)


@settings(max_examples=40, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    policy=st.sampled_from(POLICIES),
    block=st.sampled_from([None, 1, 4, 7, 32]),
    steps=st.integers(1, 14),
    shifted=st.booleans(),
    more=st.sampled_from([{}, {"temperature": 0.7}, {"guidance_scale": 0.5}, {"confidence": "margin"}]),
)
def test_no_mask_is_left_by_any_combination(rule, policy, block, steps, shifted, more):
    options = {"max_new_tokens": NEW, "block_size": block, "steps": steps, "commit": rule, "cache": policy}
    out = dllm.sampler("mdlm", denoiser(shifted), **options, **bold(rule), **more).sample(PROMPTS)
    assert not (out.sequences == MASK).any()
