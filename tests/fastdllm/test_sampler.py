"""The drop-in sampler: its defaults, the presets over it, and the published forced commit."""

from __future__ import annotations

import pytest
import torch
from dllm_fastdllm import MDLMFastdLLMSampler
from hypothesis import given, settings
from hypothesis import strategies as st

import dllm_core as dllm
from dllm_core import registry
from dllm_core.errors import OptionError
from dllm_core.samplers import MDLMSampler
from tests.fastdllm.test_caches import PROMPTS, RULES, model, trace

PRESETS = ("fast", "dual", "prefix", "parallel")
OPTIONS = {"max_new_tokens": 12, "block_size": 4, "stop_at_eos": False}


def blocks_of(sampler, prompts):
    """Of each row and block, what each step writes: a list of positions a step."""
    rows = [{} for _ in prompts]
    for step in sampler.stream([list(prompt) for prompt in prompts]):
        for row, written in zip(rows, step.committed, strict=True):
            row.setdefault(step.block, []).append(written.nonzero()[:, 0].tolist())
    return rows


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "delayed"])
@pytest.mark.parametrize("rule", RULES)
def test_a_forced_commit_writes_each_blocks_first_token_first(rule, cache, shifted):
    sampler = MDLMFastdLLMSampler(
        model(shifted), forced_commit=True, commit=rule, cache=cache, **RULES[rule], **OPTIONS
    )
    for row, prompt in zip(blocks_of(sampler, PROMPTS), PROMPTS, strict=True):
        for block, steps in row.items():
            assert steps[0] == [len(prompt) + 4 * block]
            assert sorted(position for step in steps for position in step) == list(
                range(len(prompt) + 4 * block, len(prompt) + 4 * block + 4)
            )


def test_after_a_forced_commit_the_schedule_goes_on_with_its_second_step():
    """Dream's grid of 4 steps to 1e-3: of 7 masks floor(7 (1 - s/t)) = 2, then 2 of 5, then all."""
    options = {"quota": "floor", "time_epsilon": 1e-3, "steps": 4, "block_size": 8, "max_new_tokens": 8}
    sampler = MDLMFastdLLMSampler(model(True), forced_commit=True, commit="quota", stop_at_eos=False, **options)
    assert [len(step) for step in blocks_of(sampler, [[1, 2]])[0][0]] == [1, 2, 2, 3]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 13),
    st.integers(1, 6),
    st.integers(1, 14),
    st.sampled_from(list(RULES)),
    st.sampled_from(["schedule", "even", "floor"]),
)
def test_a_forced_commit_leaves_no_mask(new, size, steps, rule, quota):
    options = {"max_new_tokens": new, "block_size": size, "steps": steps, "quota": quota, "commit": rule} | RULES[rule]
    denoiser = model(True)
    sampler = MDLMFastdLLMSampler(denoiser, forced_commit=True, stop_at_eos=False, **options)
    output = sampler.sample([list(prompt) for prompt in PROMPTS])
    assert not (output.sequences == denoiser.mask_token_id).any()
    mask = denoiser.mask_token_id
    filled = sampler.infill([[1, mask, 2, mask, mask, 3], [mask, 1, 2], [1, 2, mask, mask, mask, mask]]).sequences
    assert not (filled == mask).any()


def test_it_takes_the_place_of_the_masked_sampler():
    """With the rule, the cache and the window of the plain one it is the plain one."""
    plain = {"commit": "quota", "cache": "none", "suffix_window": None}
    denoiser = model()
    assert trace(MDLMFastdLLMSampler(denoiser, **plain, **OPTIONS), PROMPTS) == trace(
        MDLMSampler(denoiser, **OPTIONS), PROMPTS
    )
    output = MDLMFastdLLMSampler(denoiser, max_new_tokens=8).sample(PROMPTS)
    assert output.lengths.tolist() == [len(prompt) + 8 for prompt in PROMPTS]


def test_its_window_follows_the_block():
    windows = [MDLMFastdLLMSampler(model(), block_size=size).options.suffix_window for size in (4, 32, 64, None)]
    assert windows == [32, 32, 64, None]
    with pytest.raises(OptionError, match="suffix_window=16 is smaller than block_size=32"):
        MDLMFastdLLMSampler(model(), suffix_window=16)
    with pytest.raises(OptionError, match="suffix_window"):
        MDLMFastdLLMSampler(model(), suffix_window="wide")
    with pytest.raises(OptionError, match="stochastic_quota"):
        MDLMFastdLLMSampler(model(), forced_commit=True, stochastic_quota=True)


def test_where_a_family_has_no_cache_it_decodes_without():
    denoiser = model()
    denoiser.adapter = type("Plain", (type(denoiser.adapter),), {"supports_kv_cache": False})()
    assert MDLMFastdLLMSampler(denoiser).sample([[1, 2]]).stats.cache_bytes == 0
    with pytest.raises(OptionError, match="declares no KV cache"):
        dllm.sampler("fastdllm/dual", denoiser)


def test_presets_stand_first_and_the_best_one_leads():
    own = [component.spec.name for component in registry.components("sampler") if component.plugin == "fastdllm"]
    assert tuple(own[:4]) == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_published_presets_leave_out_what_was_not_published(name):
    sampler = dllm.sampler(f"fastdllm/{name}", model())
    published = name != "fast"
    assert sampler.options.stop_at_eos is not published
    assert (sampler.options.suffix_window is None) is published
    assert type(sampler.cache).__name__ == {"prefix": "Prefix", "parallel": "NoCache"}.get(name, "Dual")


def test_fewer_positions_are_computed_from_preset_to_preset():
    prompt, options = [[1, 2, 3]], {"max_new_tokens": 40, "block_size": 8}
    counts = {}
    for name in ("core/mdlm", "fastdllm/prefix", "fastdllm/dual", "fastdllm/fast"):
        more = {"suffix_window": 8} if name == "fastdllm/fast" else {}
        stats = dllm.sampler(name, model(), **options, **more).sample(prompt).stats
        counts[name] = stats.positions_processed
    assert sorted(counts.values(), reverse=True) == list(counts.values())
    assert torch.tensor(list(counts.values())).unique().numel() == 4


def test_a_preset_takes_another_rule_or_cache():
    sampler = dllm.sampler("fastdllm/dual", model(), commit="frechet", delta=0.3, cache="delayed", delay=1)
    assert (type(sampler.rule).__name__, type(sampler.cache).__name__) == ("Frechet", "Delayed")
    assert sampler.options.suffix_window is None  # the rest of the preset stands
    with pytest.raises(OptionError, match=r"option 'threshold'. It goes with commit=draft, .* or commit="):
        dllm.sampler("fastdllm/dual", model(), commit="frechet", threshold=0.9)
    with pytest.raises(OptionError, match=r"unknown sampler option 'delay'. It goes with cache=delayed. Allowed are"):
        dllm.sampler("fastdllm/dual", model(), delay=2)
    with pytest.raises(OptionError, match=r"unknown sampler option 'dellay'. Allowed are"):
        dllm.sampler("fastdllm/dual", model(), dellay=2)
