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
from dllm_core.models.cache import BlockCache, BlockLayer
from dllm_core.samplers.cache import KeptRun
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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("sampler", "more"),
    [
        ("core/mdlm", {"guidance_scale": 1.0}),
        ("core/mdlm", {"temperature": 1.0, "confidence_distribution": "sampling"}),
        ("core/mdlm", {"confidence": "random", "suppress_confidence_tokens": (3,)}),
        ("core/bd3lm", {"cache": "block"}),
        ("core/bd3lm", {"cache": "none", "block_grid": "completion"}),
    ],
    ids=["guided", "drawn", "ranked at random", "block causal", "block causal without a cache"],
)
def test_a_rule_serves_every_sampler_and_option(rule, sampler, more):
    assert_rows_are_alone(
        dllm.sampler(sampler, denoiser(), max_new_tokens=NEW, block_size=5, commit=rule, **bold(rule), **more)
    )


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


LOOKAHEADS = [
    ({"shifted": shifted}, more)
    for shifted in (False, True)
    for more in ({}, {"guidance_scale": 1.0}, {"suffix_window": 5, "stop_at_eos": True}, {"refresh_every": 2})
]


def lookahead_trace(policy: str, model: dict[str, bool], more: dict[str, object]) -> list[list]:
    options = {"max_new_tokens": NEW, "block_size": 5, "branches": 3, "threshold": 0.5, "creation_weight": 0.0}
    sampler = dllm.sampler("fastdllm/lopa", denoiser(**model), cache=policy, **options, **more)
    return [[step.input_ids.tolist(), step.confidence.nan_to_num(-1).tolist()] for step in sampler.stream(PROMPTS)]


def copy_whole_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KeptRun, "fork", KeptRun.keep)
    patch.setattr(KeptRun, "follow", KeptRun.keep)


@pytest.mark.parametrize(("model", "more"), LOOKAHEADS)
@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "core/none"])
def test_lookahead_is_what_it_is_where_each_branch_copies_whole_rows(policy, model, more, monkeypatch):
    got = lookahead_trace(policy, model, more)
    copy_whole_rows(monkeypatch)
    assert got == lookahead_trace(policy, model, more)


def test_a_branch_that_is_followed_without_its_keys_and_values_is_caught(monkeypatch):
    monkeypatch.setattr(BlockCache, "follow", lambda self, chosen: None)
    got = [lookahead_trace(policy, {}, {}) for policy in POLICIES[1:]]
    copy_whole_rows(monkeypatch)
    assert got != [lookahead_trace(policy, {}, {}) for policy in POLICIES[1:]]


def test_lookahead_copies_what_a_step_wrote(monkeypatch):
    copied, level = [], BlockLayer.level

    def counted(self, chosen, slots):
        copied.append(slots.numel())
        level(self, chosen, slots)

    monkeypatch.setattr(BlockLayer, "level", counted)
    moved, select = [], BlockCache.select
    monkeypatch.setattr(BlockCache, "select", lambda self, rows: (moved.append(len(rows)), select(self, rows))[1])
    options = {"max_new_tokens": 10, "block_size": 5, "branches": 3, "threshold": 1.0, "stop_at_eos": False}
    out = dllm.sampler("fastdllm/lopa", denoiser(), cache="fastdllm/dual", **options).sample([[1, 2]])
    ahead = out.stats.forward_passes - 2
    # Three layers: the block's 5 slots behind each look ahead, and all 12 in front of the second block's first.
    assert sorted(copied) == [5] * 3 * ahead + [12] * 3
    assert moved == [1, 4]  # whole rows: as the run begins, before anything is held, and at its first look ahead


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


SELF_PACED = [
    rule
    for rule in RULES
    if not (made := registry.load("commit rule", rule)).follows_quota and "history" not in made.needs
]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rule=st.sampled_from(SELF_PACED),
    policy=st.sampled_from(POLICIES),
    block=st.sampled_from([None, 1, 4, 7]),
    branches=st.integers(1, 4),
    shifted=st.booleans(),
    more=st.sampled_from([{}, {"temperature": 0.7}, {"guidance_scale": 0.5}, {"confidence": "margin"}]),
)
def test_lookahead_leaves_no_mask_and_rows_alone_by_any_rule_and_policy(rule, policy, block, branches, shifted, more):
    options = {"max_new_tokens": NEW, "block_size": block, "branches": branches, "commit": rule, "cache": policy}
    assert_rows_are_alone(dllm.sampler("fastdllm/lopa", denoiser(shifted), **options, **bold(rule), **more))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rule=st.sampled_from(SELF_PACED),
    policy=st.sampled_from(POLICIES),
    block=st.sampled_from([None, 1, 5]),
    more=st.sampled_from([{}, {"temperature": 0.7}, {"guidance_scale": 0.5}, {"confidence": "margin"}]),
)
def test_verification_leaves_no_mask_and_rows_alone_by_any_rule_and_policy(rule, policy, block, more):
    options = {"max_new_tokens": NEW, "block_size": block, "commit": rule, "cache": policy}
    assert_rows_are_alone(dllm.sampler("fastdllm/wino", denoiser(), **options, **bold(rule), **more))


ONE_A_STEP = {
    "fastdllm/threshold": {"threshold": 1.0},
    "fastdllm/factor": {"factor": 0.0},
    "fastdllm/frechet": {"delta": 1.0},
    "fastdllm/entropy": {"entropy_bound": 0.0},
    "fastdllm/klass": {"threshold": 1.0},
    "fastdllm/credit": {"threshold": 1.0},
    "fastdllm/hierarchical": {"low_threshold": 1.0, "threshold": 1.0},
    "fastdllm/draft": {"threshold": 1.0},
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", ONE_A_STEP)
def test_at_its_most_careful_a_rule_writes_the_surest_token_of_each_step(rule, policy):
    options = {"max_new_tokens": NEW, "block_size": 5, "cache": policy, "stop_at_eos": False}
    # What is given credit may come in another order, and entropy ranks by itself.
    one_by_one = {"confidence": "entropy"} if rule == "fastdllm/entropy" else {}
    weightless = {"credit_weight": 0.0} if rule == "fastdllm/credit" else {}
    careful = dllm.sampler("mdlm", denoiser(), commit=rule, **options, **ONE_A_STEP[rule], **weightless)
    got, want = careful.sample(PROMPTS), dllm.sampler("mdlm", denoiser(), **options, **one_by_one).sample(PROMPTS)
    assert got.stats.forward_passes == want.stats.forward_passes
    assert torch.equal(got.sequences, want.sequences)
