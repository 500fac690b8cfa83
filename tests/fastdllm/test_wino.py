"""WINO against a plain loop over one row, its promise to end, and where it is not defined."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from dllm_fastdllm import Threshold, WINOSampler, wino
from dllm_fastdllm.wino import shadow_pattern
from transformers import DynamicCache

import dllm_core as dllm
from dllm_core.conformance.deep import deep_denoiser
from dllm_core.conformance.toy import ExactModel, ToyAdapter, random_joint
from dllm_core.errors import OptionError
from dllm_core.samplers import CachePolicy, MDLMSampler, parts
from dllm_core.samplers import cache as kept
from dllm_core.samplers.fit import Demands, check_history

VOCAB, MASK, NEW = 12, 12, 24
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
CACHES = ("prefix", "dual", "vicinity", "delayed", "interval")
WINO_BLOCK = 8


@functools.cache
def denoiser(seed: int = 0) -> dllm.Denoiser:
    sharp = deep_denoiser(VOCAB, 64, pad=0, seed=seed)
    with torch.no_grad():
        sharp.model.get_output_embeddings().weight.mul_(3)  # confident enough that thresholds decide something
    return sharp


def answers(model: dllm.Denoiser, ids: list[int], start: int, stop: int, window: int) -> tuple[torch.Tensor, ...]:
    """Logits of the canvas up to the block's end, and of the block's positions (K, V), each where it is hidden."""
    shown = [*range(min(stop + window, len(ids) - 1)), len(ids) - 1]
    width, copies = len(shown), stop - start
    pattern = torch.zeros(width + copies, width + copies, dtype=torch.bool)
    for query in range(width + copies):
        for key in range(width + copies):
            is_copy, of = query >= width, start + query - width
            pattern[query, key] = (is_copy or key < width) and not (is_copy and key < width and shown[key] == of)
    canvas = torch.tensor([[ids[at] for at in shown] + [MASK] * copies])
    positions = torch.tensor([[*shown, *range(start, stop)]])
    with torch.no_grad():
        logits = model.logits(canvas, position_ids=positions, attention=pattern[None, None])[0]
    by_position = logits.new_zeros(len(ids), logits.shape[1])
    by_position[shown] = logits[:width]
    return by_position, logits[width:]


class KeptAnswers:
    """As `answers`, with the cache of the transformers library: a block's first step keeps all but the block."""

    def __init__(self) -> None:
        self.start = None

    def __call__(self, model: dllm.Denoiser, ids: list[int], start: int, stop: int, window: int) -> tuple:
        opens, self.start = start != self.start, start
        others = [] if opens else [at for at in range(len(ids)) if not start <= at < stop]
        own = list(range(len(ids))) if opens else list(range(start, stop))
        past, keys, copies = DynamicCache(), [*others, *own], stop - start
        if others:
            for layer, (key, value) in enumerate(self.kept):
                past.update(key[:, :, others], value[:, :, others], layer)
        pattern = torch.zeros(len(own) + copies, len(keys) + copies, dtype=torch.bool)
        pattern[:, : len(keys)] = True
        for copy in range(copies):
            pattern[len(own) + copy, keys.index(start + copy)] = False
            pattern[len(own) + copy, len(keys) :] = True
        with torch.no_grad():
            logits = model.logits(
                torch.tensor([[ids[at] for at in own] + [MASK] * copies]),
                position_ids=torch.tensor([[*own, *range(start, stop)]]),
                attention=pattern[None, None],
                cache=past,
            )[0]
        if opens:
            self.kept = [(layer.keys, layer.values) for layer in past.layers]
        by_position = logits.new_zeros(len(ids), logits.shape[1])
        by_position[own] = logits[: len(own)]
        return by_position, logits[len(own) :]


def loop_wino(
    model: dllm.Denoiser, prompt: list[int], block: int, threshold: float, back: float, window: int, answers=answers
) -> list[list[int]]:
    """Every canvas of one row, by the paper's algorithm over Python lists."""
    ids, canvases = prompt + [MASK] * NEW, []
    for start in range(len(prompt), len(ids), block):
        stop, last = min(start + block, len(ids)), 1
        while any(token == MASK for token in ids[start:stop]):
            logits, hidden = answers(model, ids, start, stop, window)
            whole = logits.logsumexp(1)  # the mask token counts, and is never written
            logits[:, MASK] = -torch.inf
            sure = {at: (logits[at].max() - whole[at]).exp().item() for at in range(start, stop) if ids[at] == MASK}
            order = sorted(sure, key=lambda at: (-sure[at], at))
            cap = min(max(int(0.7 * len(sure)), 5), 20)
            taken = [at for at in order if sure[at] > threshold][:cap] or order[:1]
            held = {at: hidden[at - start].softmax(0)[ids[at]].item() for at in range(start, stop) if ids[at] != MASK}
            doubted = sorted((at for at in held if held[at] < back), key=lambda at: (held[at], at))
            doubted = doubted[: last - 1] if len(taken) > 1 else []
            for at in taken:
                ids[at] = logits[at].argmax().item()
            for at in doubted:
                ids[at] = MASK
            last = len(taken)
            canvases.append(list(ids))
    return canvases


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("block", "threshold", "back"), [(8, 0.0, 1.0), (24, 0.1, 0.5), (7, 0.05, 0.9)])
def test_every_canvas_is_that_of_the_loop(seed, block, threshold, back, window):
    window = window and max(window, block)
    model = denoiser(seed)
    options = {"block_size": block, "threshold": threshold, "verify_threshold": back, "suffix_window": window}
    sampler = WINOSampler(model, max_new_tokens=NEW, **options)
    taken_back = 0
    for prompt in PROMPTS:
        got = [step.input_ids[0, : len(prompt) + NEW].tolist() for step in sampler.stream([prompt])]
        assert got == loop_wino(model, prompt, block, threshold, back, window or NEW)
        for before, after in itertools.pairwise(got):
            taken_back += sum(old != MASK == new for old, new in zip(before, after, strict=True))
    assert taken_back > 0


def check_kept(seed: int) -> None:
    model = denoiser(seed)
    sampler = WINOSampler(model, max_new_tokens=NEW, block_size=8, threshold=0.1, cache="dual", stop_at_eos=False)
    for prompt in PROMPTS:
        got = [step.input_ids[0, : len(prompt) + NEW].tolist() for step in sampler.stream([prompt])]
        assert got == loop_wino(model, prompt, 8, 0.1, 0.9, NEW, KeptAnswers())


@pytest.mark.parametrize("seed", range(3))
def test_every_canvas_with_a_cache_is_that_of_the_loop_with_a_cache(seed):
    check_kept(seed)


@pytest.mark.parametrize("broken", ["sees its own token", "computed with the tokens"])
def test_a_copy_that_knows_the_token_is_caught(broken, monkeypatch):
    def leaky(columns, real, spots, valid, queries):
        return shadow_pattern(columns, real, spots + 1, valid, queries)

    def shown(plan, spots, pattern):
        return with_copy(plan, spots, pattern)._replace(copies=0)

    def projected(denoiser, cache, plan, ids, at, lead):
        """As `ask`, the copy's tokens left as they are."""
        copies = torch.arange(plan.positions.shape[1])[-WINO_BLOCK:].expand(len(at), -1)
        return ask(denoiser, cache, plan, ids, torch.cat([at, plan.begin + copies], 1), lead)

    with_copy, ask = wino.with_copy, kept.ask
    if broken == "sees its own token":
        monkeypatch.setattr(wino, "shadow_pattern", leaky)
    else:
        monkeypatch.setattr(wino, "with_copy", shown)
        monkeypatch.setattr(kept, "ask", projected)
    with pytest.raises(AssertionError):
        check_kept(0)


@pytest.mark.parametrize("more", [{}, {"suffix_window": 9, "guidance_scale": 1.0}])
@pytest.mark.parametrize("cache", CACHES)
def test_a_refresh_every_step_is_no_cache(cache, more):
    options = {"max_new_tokens": NEW, "block_size": 8, "threshold": 0.1, **more}
    plain = WINOSampler(denoiser(), **options)
    exact = WINOSampler(denoiser(), cache=cache, refresh_every=1, **options)
    for step, want in zip(exact.stream(PROMPTS), plain.stream(PROMPTS), strict=True):
        assert torch.equal(step.input_ids, want.input_ids)
        torch.testing.assert_close(step.confidence, want.confidence, equal_nan=True, rtol=1e-6, atol=1e-6)


def test_the_copy_is_counted_and_has_room():
    options = {"max_new_tokens": 16, "block_size": 8, "threshold": 1.0, "stop_at_eos": False}
    stats = WINOSampler(denoiser(), cache="dual", **options).sample([[1, 2]]).stats
    plain = MDLMSampler(denoiser(), cache="dual", **options | {"commit": "draft"}).sample([[1, 2]]).stats
    assert stats.forward_passes == plain.forward_passes == 16
    assert stats.positions_processed == plain.positions_processed + 16 * 8
    assert stats.logit_rows == plain.logit_rows + 16 * 8
    assert stats.cache_bytes * (2 + 16 + 1) == plain.cache_bytes * (2 + 16 + 8 + 1)


@pytest.mark.parametrize("cache", ["none", *CACHES])
def test_a_ragged_batch_gives_each_row_what_it_gets_alone(cache):
    singly = ({"guidance_scale": 1.0}, {"suffix_window": 8}) if cache == "none" else ()
    for more in ({}, *singly, {"suffix_window": 9, "guidance_scale": 1.0}):
        sampler = WINOSampler(denoiser(), max_new_tokens=NEW, block_size=8, threshold=0.1, cache=cache, **more)
        together = sampler.sample(PROMPTS)
        for row, prompt in enumerate(PROMPTS):
            alone = sampler.sample([prompt])
            assert together.sequences[row, : together.lengths[row]].tolist() == alone.sequences[0].tolist()


@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("back", [0.0, 0.5, 1.0])
def test_a_block_takes_no_more_steps_than_it_has_masks(threshold, back):
    for block in (1, 5, 8, None):
        sampler = WINOSampler(
            denoiser(), max_new_tokens=NEW, block_size=block, threshold=threshold, verify_threshold=back
        )
        steps = list(sampler.stream(PROMPTS))
        assert len(steps) <= NEW
        assert not (steps[-1].input_ids == MASK).any()


def test_without_verification_it_is_the_masked_sampler_with_its_rule():
    options = {"max_new_tokens": NEW, "block_size": 8, "commit": "fastdllm/draft", "threshold": 0.2}
    plain = MDLMSampler(denoiser(), **options).sample(PROMPTS)
    unverified = WINOSampler(denoiser(), **options, verify_threshold=0.0).sample(PROMPTS)
    assert torch.equal(plain.sequences, unverified.sequences)
    assert plain.stats.forward_passes == unverified.stats.forward_passes
    assert plain.stats.positions_processed < unverified.stats.positions_processed


def test_at_the_threshold_one_it_writes_a_token_a_step():
    sampler = WINOSampler(denoiser(), max_new_tokens=NEW, block_size=8, threshold=1.0)
    assert sampler.sample(PROMPTS).stats.forward_passes == NEW


def test_nothing_of_the_copy_reaches_the_canvas_and_no_token_reaches_its_own_copy():
    block = WINOSampler(denoiser(), max_new_tokens=5, block_size=4).start([[1, 2], [3]]).block
    pattern = shadow_pattern(*block.layout.shown(7), block.positions, block.valid, 7)[:, 0]  # (R, W + K, W + K)
    assert not pattern[:, :7, 7:].any()
    for row, positions in enumerate(block.positions.tolist()):
        for copy, position in enumerate(positions):
            assert not pattern[row, 7 + copy, position]
    assert not pattern[1, :, 6].any()  # the second row is a token shorter


class Patternless(ToyAdapter):
    supports_block_causal = False


@dataclass(frozen=True, kw_only=True)
class Stale(CachePolicy):
    computes_anew: ClassVar[bool] = False


def refused(model: dllm.Denoiser, match: str, **options: object) -> None:
    with pytest.raises(OptionError, match=match):
        WINOSampler(model, **options)


def test_where_it_is_not_defined_it_says_so(monkeypatch):
    load = parts.registry.load
    exact = ExactModel(random_joint(2, 2, seed=0))
    refused(dllm.Denoiser(exact, Patternless(), special_ids={"mask": 2}), "Patternless does not declare")
    refused(deep_denoiser(VOCAB, 64, shifted=True), "not defined where logits are right-shifted")
    monkeypatch.setattr(parts.registry, "load", lambda kind, name: Stale if name == "stale" else load(kind, name))
    refused(
        denoiser(), "^cache='stale' has no place for wino's hidden copy .* use cache='fastdllm/dual'", cache="stale"
    )
    refused(denoiser(), "upsets the plan of commit='quota'.*use", commit="quota")
    refused(denoiser(), "commit='klass' needs a history", commit="klass")
    refused(denoiser(), "verify_threshold must be between 0.0 and 1.0, got 1.5", verify_threshold=1.5)


def test_a_rule_that_compares_steps_needs_steps_to_compare():
    klass = dllm.sampler("mdlm", denoiser(), commit="klass").rule
    with pytest.raises(OptionError, match=r"cache='stale' gives the same scores again; use another commit rule"):
        check_history("MDLMSampler", Demands(), "klass", klass, "stale", Stale())
    check_history("MDLMSampler", Demands(), "threshold", Threshold(), "stale", Stale())
