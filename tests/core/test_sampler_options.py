"""Sampler options: what is out of range, unknown or contradictory is refused in one line, when the sampler is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import dllm_core as dllm
from dllm_core.conformance.toy import ExactModel, ToyAdapter, random_joint, toy_denoiser
from dllm_core.errors import ModelLoadError, OptionError, UnknownComponentError
from dllm_core.samplers import CachePolicy, MaskedOptions
from dllm_core.samplers.parts import check_against_model


@pytest.fixture(scope="module")
def denoiser():
    return toy_denoiser(random_joint(3, 3, seed=0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, ["steps", "at least 1", "0"]),
        ({"steps": -4}, ["steps", "at least 1", "-4"]),
        ({"steps": 2.5}, ["steps", "a whole number", "2.5"]),
        ({"steps": True}, ["steps", "a whole number", "True"]),
        ({"steps": "many"}, ["steps", "a whole number", "'many'"]),
        ({"steps_per_block": 0}, ["steps_per_block", "at least 1"]),
        ({"block_size": 0}, ["block_size", "at least 1", "0"]),
        ({"max_new_tokens": 0}, ["max_new_tokens", "at least 1"]),
        ({"max_length": 0}, ["max_length", "at least 1"]),
        ({"temperature": -0.5}, ["temperature", "at least 0", "-0.5"]),
        ({"temperature": float("nan")}, ["temperature", "nan"]),
        ({"temperature": float("inf")}, ["temperature", "finite", "inf"]),
        ({"confidence_temperature": -1}, ["confidence_temperature", "at least 0"]),
        ({"guidance_scale": -1}, ["guidance_scale", "at least 0"]),
        ({"top_p": 2}, ["top_p", "between 0.0 and 1.0", "2"]),
        ({"top_p": -0.1}, ["top_p", "between"]),
        ({"top_k": 0}, ["top_k", "at least 1"]),
        ({"confidence": "margn"}, ["confidence", "'margn'", "Did you mean 'margin'?", "entropy"]),
        ({"confidence_distribution": "sampled"}, ["confidence_distribution", "Did you mean 'sampling'?", "model"]),
        ({"quota": "fair"}, ["quota", "schedule, floor, even", "'fair'"]),
        ({"time_epsilon": 0.6}, ["time_epsilon", "between 0.0 and 0.5", "0.6"]),
        ({"time_epsilon": 0.1, "quota": "even"}, ["time_epsilon", "quota='schedule'"]),
        ({"schedule": "linaer"}, ["schedule 'linaer'", "Did you mean 'linear'?"]),
        ({"seed": "x"}, ["seed", "'x'"]),
        ({"max_length": 4, "max_new_tokens": 2}, ["max_length", "max_new_tokens", "give one of them"]),
        ({"stochastic_quota": True, "quota": "even"}, ["stochastic_quota", "quota='schedule'"]),
        ({"stepz": 4}, ["'stepz'", "Did you mean 'steps'?", "block_size"]),
        ({"cfg_scale": 1.0}, ["'cfg_scale'", "guidance_scale"]),
        ({"suppress_tokens": [99]}, ["suppress_tokens", "99", "0 to 3"]),
        ({"suppress_confidence_tokens": [-1]}, ["suppress_confidence_tokens", "-1"]),
        ({"guidance_keep_tokens": ["a"]}, ["guidance_keep_tokens", "'a'"]),
        ({"suppress_tokens": 2}, ["suppress_tokens", "a list"]),
        ({"suppress_tokens": [0, 1, 2]}, ["suppress_tokens", "no token to choose"]),
    ],
)
def test_bad_options_are_refused(denoiser, options, words):
    for make in (lambda: dllm.sampler("mdlm", denoiser, **options), lambda: dllm.MDLMSampler(denoiser, **options)):
        with pytest.raises(OptionError) as caught:
            make()
        assert_says(caught.value, words)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mdml", {}, ["sampler", "'mdml'", "Did you mean 'mdlm'?"]),
        ("mdlm", {"commit": "quotta"}, ["commit rule", "'quotta'", "Did you mean 'quota'?"]),
        ("mdlm", {"cache": "duel"}, ["cache policy", "'duel'"]),
    ],
)
def test_unknown_parts_are_refused(denoiser, name, options, words):
    with pytest.raises(UnknownComponentError) as caught:
        dllm.sampler(name, denoiser, **options)
    assert_says(caught.value, words)


def test_an_option_of_another_commit_rule_is_unknown(denoiser):
    with pytest.raises(OptionError, match="unknown sampler option 'threshold'"):
        dllm.sampler("mdlm", denoiser, threshold=0.9)


def test_text_from_a_command_line_becomes_numbers(denoiser):
    options = dllm.sampler("mdlm", denoiser, steps="4", temperature="0.5", stop_at_eos="off", block_size=None).options
    assert (options.steps, options.temperature, options.stop_at_eos, options.block_size) == (4, 0.5, False, None)


@dataclass(frozen=True, kw_only=True)
class Cached(CachePolicy):
    needs_kv_cache: ClassVar[bool] = True


class Cacheless(ToyAdapter):
    supports_kv_cache = False


def test_a_cache_needs_a_family_with_a_cache():
    denoiser = dllm.Denoiser(ExactModel(random_joint(2, 2, seed=0)), Cacheless(), special_ids={"mask": 2})
    with pytest.raises(OptionError, match=r"Cacheless declares no KV cache; use cache='none'"):
        check_against_model(MaskedOptions(), Cached(), denoiser)
    with pytest.raises(OptionError, match=r"Cacheless declares no KV cache; use cache='none'"):
        denoiser.logits(torch.zeros(1, 2, dtype=torch.int64), cache=object())


def test_a_sampler_needs_exactly_one_model(denoiser):
    for wrong in ({}, {"denoiser": denoiser, "model": denoiser.model}):
        with pytest.raises(OptionError, match=r"either a denoiser .* or model="):
            dllm.MDLMSampler(**wrong)


def test_a_model_of_no_installed_family_is_refused():
    model = ExactModel(random_joint(2, 2, seed=0))
    model.config.model_type = "nobody"
    with pytest.raises(ModelLoadError, match="no installed plugin serves model_type 'nobody'"):
        dllm.MDLMSampler(model=model)


def assert_says(error: Exception, words: list[str]) -> None:
    message = str(error)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
