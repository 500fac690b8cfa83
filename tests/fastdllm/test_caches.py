"""Cache policies against decoding written out by hand, against each row alone, and against no cache at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dllm_fastdllm import Delayed, Dual, Interval, Prefix, Vicinity
from dllm_fastdllm.caches.interval import IntervalRun, how_far
from dllm_fastdllm.caches.window import Place, WindowRun
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from dllm_core.conformance.deep import deep_denoiser
from dllm_core.errors import OptionError
from dllm_core.models.cache import BlockCache
from dllm_core.samplers import MDLMSampler
from dllm_core.samplers import cache as kept

VOCAB, LENGTH, EOS, PAD = 9, 48, 7, 8
PROMPTS = [[1, 2, 3, 4, 5], [6, 5], [2, 3, 1, 0, 4, 5, 2, 1]]
POLICIES = {
    "prefix": {},
    "dual": {},
    "vicinity": {"warmup": 2, "look_before": 2, "look_after": 3},
    "delayed": {"delay": 2},
    "interval": {"prompt_every": 2, "response_every": 3},
}
RULES = {
    "quota": {},
    "threshold": {"threshold": 0.4},
    "factor": {"factor": 1.5},
    "frechet": {"delta": 0.1},
    "entropy": {"entropy_bound": 2.0},
}


def model(shifted=False):
    """Random weights, attention that tells positions apart, and a head so steep that some tokens are sure.

    Rules then write one token or several, and rows finish their blocks at different steps.
    """
    denoiser = deep_denoiser(VOCAB, LENGTH, eos=EOS, pad=PAD, shifted=shifted, seed=3)
    with torch.no_grad():
        denoiser.model.lm_head.weight.mul_(8)
        for layer in denoiser.model.model.layers:
            layer.self_attn.q_proj.weight.mul_(6)
    return denoiser


def sampler(cache, denoiser, **options):
    given_ = {"max_new_tokens": 12, "block_size": 4, "stop_at_eos": False} | POLICIES.get(cache, {}) | options
    return MDLMSampler(denoiser, cache=cache, **given_)


def trace(sampler, prompts):
    """Of each row, every write in turn: the position, the token and how sure it was."""
    rows = [[] for _ in prompts]
    for step in sampler.stream([list(prompt) for prompt in prompts]):
        for row, ids, sure, written in zip(rows, step.input_ids, step.confidence, step.committed, strict=True):
            row += [(p, int(ids[p]), round(float(sure[p]), 5)) for p in written.nonzero()[:, 0].tolist()]
    return rows


def keys_and_values(cache):
    return [(layer.keys, layer.values) for layer in cache.layers]


def cache_of(pairs):
    cache = DynamicCache()
    for number, (keys, values) in enumerate(pairs):
        cache.update(keys, values, number)
    return cache


def by_hand(kind, denoiser, prompt, *, new=12, size=4):
    """One row, one token a step, with the cache of the transformers library and its slots side by side.

    Attention does not ask in which order keys stand, as long as each was rotated to its own position.
    """
    mask, steps = denoiser.mask_token_id, []
    ids = torch.tensor([list(prompt) + [mask] * new])
    everywhere, shift = torch.arange(ids.shape[1])[None], int(denoiser.logits_are_shifted)
    for start in range(len(prompt), ids.shape[1], size):
        stop, lead, kept = start + size, None, None
        for step in range(size):
            if step == 0:
                full = DynamicCache()
                scores = denoiser.model(ids, position_ids=everywhere, past_key_values=full, use_cache=True).logits[0]
                lead, kept = scores[start - shift], keys_and_values(full)
                block = scores[start - shift : stop - shift]
            else:
                end = ids.shape[1] if kind == "prefix" else stop
                others = torch.tensor([p for p in range(ids.shape[1]) if p < start or p >= end])
                past = cache_of([(keys[:, :, others], values[:, :, others]) for keys, values in kept])
                seen = denoiser.model(
                    ids[:, start:end], position_ids=everywhere[:, start:end], past_key_values=past, use_cache=True
                ).logits[0]
                block = torch.cat([lead[None], seen[: size - 1]]) if shift else seen[:size]
            steps.append(write(ids, block.float(), start, mask))
    return steps


def write(ids, scores, start, mask):
    """Write the surest masked token of a block into the row; where, what, and how sure."""
    allowed = scores.clone()
    allowed[:, mask] = -torch.inf
    tokens = allowed.argmax(-1)
    sure = scores.softmax(-1).gather(1, tokens[:, None])[:, 0]
    sure = sure.masked_fill(ids[0, start : start + len(scores)] != mask, -1)
    best = int(sure.argmax())
    ids[0, start + best] = tokens[best]
    return start + best, int(tokens[best]), round(float(sure[best]), 5)


def check_by_hand(kind, policy=None):
    """The named policy, or another in its place, writes what `by_hand` writes, alone and in a ragged batch."""
    for shifted in (False, True):
        denoiser = model(shifted)
        fast = sampler(kind, denoiser)
        fast.cache = policy or fast.cache
        with torch.no_grad():
            assert trace(fast, PROMPTS) == [by_hand(kind, denoiser, prompt) for prompt in PROMPTS]


def check_alone(cache, policy=None, **options):
    """Each row of a ragged batch is what it is alone."""
    denoiser = model(shifted=options.pop("shifted", False))
    fast = sampler(cache, denoiser, **options)
    fast.cache = policy or fast.cache
    assert trace(fast, PROMPTS) == [trace(fast, [prompt])[0] for prompt in PROMPTS]


@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_it_is_the_published_computation(kind):
    check_by_hand(kind)


@pytest.mark.parametrize("cache", POLICIES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rule=st.sampled_from(list(RULES)),
    block_size=st.sampled_from([2, 3, 4, 12]),
    shifted=st.booleans(),
    guidance=st.sampled_from([0.0, 1.0]),
    window=st.booleans(),
    stops=st.booleans(),
    steps=st.sampled_from([None, 5]),
)
def test_a_row_is_the_same_alone_and_in_any_batch(cache, rule, block_size, shifted, guidance, window, stops, steps):
    options = {"suffix_window": block_size} if window else {}
    check_alone(
        cache,
        commit=rule,
        **RULES[rule],
        block_size=block_size,
        shifted=shifted,
        guidance_scale=guidance,
        stop_at_eos=stops,
        steps=steps,
        **options,
    )


@pytest.mark.parametrize("cache", POLICIES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rule=st.sampled_from(list(RULES)),
    block_size=st.sampled_from([1, 3, 4, None]),
    steps=st.sampled_from([None, 1, 3, 7]),
    refresh=st.sampled_from([None, 2]),
    shifted=st.booleans(),
)
def test_no_mask_is_left(cache, rule, block_size, steps, refresh, shifted):
    denoiser = model(shifted)
    options = {"commit": rule, "block_size": block_size, "steps": steps, "refresh_every": refresh} | RULES[rule]
    out = sampler(cache, denoiser, **options).sample([list(prompt) for prompt in PROMPTS])
    for row, length in zip(out.sequences, out.lengths, strict=True):
        assert denoiser.mask_token_id not in row[:length].tolist()


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("options", [{}, {"suffix_window": 4}, {"guidance_scale": 1.0}, {"commit": "threshold"}])
@pytest.mark.parametrize("cache", POLICIES)
def test_a_refresh_every_step_is_no_cache(cache, options, shifted):
    denoiser = model(shifted)
    exact, plain = (
        sampler(name, denoiser, **options, **more) for name, more in ((cache, {"refresh_every": 1}), ("none", {}))
    )
    for step, want in zip(exact.stream(PROMPTS), plain.stream(PROMPTS), strict=True):
        assert torch.equal(step.input_ids, want.input_ids)
        torch.testing.assert_close(step.confidence, want.confidence, equal_nan=True, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("cache", ["prefix", "dual", "vicinity"])
def test_a_blocks_first_step_is_a_full_forward(cache, shifted):
    denoiser = model(shifted)
    fast = sampler(cache, denoiser)
    state = fast.start(PROMPTS)
    while not state.finished:
        opens, before, number = state.block.step == 0, state.input_ids.clone(), state.block.number
        step = fast.step(state)
        if not opens:
            continue
        for row, prompt in enumerate(PROMPTS):
            with torch.no_grad():
                scores = denoiser.logits(before[row : row + 1, : len(prompt) + 12])[0].float()
            scores = scores[len(prompt) + 4 * number : len(prompt) + 4 * number + 4]
            tokens = scores[:, :-1].argmax(-1, keepdim=True)  # the mask token is the last id
            sure = step.confidence[row, len(prompt) + 4 * number : len(prompt) + 4 * number + 4]
            torch.testing.assert_close(sure, scores.softmax(-1).gather(1, tokens)[:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cache", POLICIES)
def test_infilling_is_the_same_alone_and_in_any_batch(cache):
    denoiser = model()
    mask = denoiser.mask_token_id
    canvases = [
        [1, mask, 2, 3, 4, 5, mask, mask, 1],
        [mask, 2, 3, 4, 5, mask],
        [1, 2, 3, 4, mask, mask, mask, mask, 2, 2],
    ]
    fast = sampler(cache, denoiser, max_new_tokens=None)
    together = fast.infill(canvases)
    for row, canvas in enumerate(canvases):
        assert together.sequences[row, : len(canvas)].tolist() == fast.infill([canvas]).sequences[0].tolist()
        assert mask not in together.sequences[row, : len(canvas)].tolist()


PLACE = Place(start=20, stop=24, length=40, previous=16, written=1, origin=12)


@pytest.mark.parametrize(
    ("policy", "windows"),
    [
        (Prefix(), [(0, 40), (20, 40), (20, 40)]),
        (Prefix(refresh_every=2), [(0, 40), (20, 40), (0, 40)]),
        (Dual(), [(0, 40), (20, 24), (20, 24)]),
        (Vicinity(warmup=2, look_before=30, look_after=2), [(0, 40), (0, 40), (0, 26)]),
        (Vicinity(warmup=1, look_before=3, look_after=30), [(0, 40), (17, 40), (17, 40)]),
        (Delayed(delay=2), [(16, 40), (16, 40), (20, 40)]),
        (Delayed(delay=1, refresh_every=2), [(0, 40), (20, 40), (0, 40)]),
        (Interval(prompt_every=2, response_every=2), [(12, 40), (20, 24), (12, 40)]),
        (Interval(prompt_every=1, response_every=2), [(0, 40), (20, 24), (12, 40)]),
    ],
)
def test_what_each_step_computes(policy, windows):
    assert [policy.window(step, PLACE) for step in range(3)] == windows


def test_counts_are_those_of_the_windows():
    counts = {}
    for cache in POLICIES:
        stats = sampler(cache, model(), steps=12).sample([[1, 2, 3, 4]]).stats
        counts[cache] = (stats.forward_passes, stats.positions_processed, stats.logit_rows)
    # 16 positions, 3 blocks of 4, 4 steps each; a step projects the masks that are left, 4 + 3 + 2 + 1.
    assert counts["prefix"] == (12, 3 * 16 + 3 * (12 + 8 + 4), 30)
    assert counts["dual"] == (12, 3 * 16 + 3 * 3 * 4, 30)
    assert counts["vicinity"] == (12, 6 * 16 + 2 * (2 + 4 + 3) * 2 + 2 * (2 + 4), 30)
    assert counts["delayed"] == (12, 2 * 16 + 2 * 12 + 2 * 12 + 2 * 8 + 2 * 8 + 2 * 4, 30)
    # Two steps of four are refreshes, the prompt's at blocks 0 and 2; a quarter of the other 8 is computed beside.
    assert counts["interval"] == (12, (16 + 12) * 2 + (12 + 12) + 3 * 2 * (4 + 2), 30)


def test_memory_is_stated_before_it_is_taken(monkeypatch):
    asked = []
    monkeypatch.setattr(kept, "check_memory", lambda *size: asked.append(size))
    fast = sampler("dual", model())
    state = fast.start(PROMPTS)
    layers, heads, size, slots = 3, 1, 8, 8 + 12 + 1
    assert state.stats.cache_bytes == asked[0][0] == 2 * layers * 3 * heads * slots * size * 8  # float64
    assert not state.cache.cache.layers
    fast.step(state)
    assert state.stats.cache_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in state.cache.cache.layers)


def test_a_cache_without_room_is_refused_before_it_is_taken(monkeypatch, tmp_path):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       99999999 kB\nMemAvailable:          1 kB\n", encoding="ascii")
    monkeypatch.setattr(kept, "MEMINFO", told)
    taken = BlockCache.bytes_needed(model().bare_model.config, 1, 8, model().dtype)
    assert kept.free_bytes(torch.device("cpu")) == 1024 < 4 * taken
    with pytest.raises(OptionError, match=r"^the cache of 3 rows of 20 positions takes 0.0 GB, of which .* use cache="):
        sampler("dual", model()).start(PROMPTS)
    assert sampler("none", model()).start(PROMPTS).stats.cache_bytes == 0
    stepped = sampler("dual", model(), compiled_step="eager")  # keeps its buffers between runs
    with pytest.raises(OptionError, match=r"takes 0\.0 GB"):
        stepped.sample(PROMPTS)
    told.write_text("MemAvailable: 9999999 kB\n", encoding="ascii")
    stepped.sample(PROMPTS)
    told.write_text("MemAvailable: 1 kB\n", encoding="ascii")
    stepped.sample(PROMPTS)  # in what it holds
    with pytest.raises(OptionError, match="the cache of 4 rows of 64 positions takes"):
        stepped.sample([*PROMPTS, [1]])
    told.unlink()  # a system that does not say
    assert kept.free_bytes(torch.device("cpu")) is None
    assert sampler("dual", model()).start(PROMPTS).stats.cache_bytes > 1024


def test_what_moved_is_computed_beside_the_block():
    before = torch.tensor([[[[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]]])
    after = torch.tensor([[[[0.0, 1.0], [3.0, 0.0], [1.0, 1.0], [0.0, 0.0]]]])
    torch.testing.assert_close(how_far(before, after), torch.tensor([[1.0, 0.0, 1 - 0.5**0.5]]))
    fast = sampler("interval", model(), block_size=4, response_every=4, moving_share=0.25)
    state = fast.start([[1, 2]])
    fast.step(state)
    state.cache.turned = torch.tensor(
        [[9.0, 9, 9, 9, 9, 9, 0, 0.1, 0.5, 0, 0, 0.7, 0, 0]]
    )  # prompt and block do not count
    fast.step(state)
    assert state.cache.plan.positions[0].tolist() == [2, 3, 4, 5, 11, 8]


@pytest.mark.parametrize("cache", POLICIES)
def test_a_family_without_a_cache_is_refused(cache):
    denoiser = model()
    denoiser.adapter = type("Plain", (type(denoiser.adapter),), {"supports_kv_cache": False})()
    with pytest.raises(OptionError, match="declares no KV cache; use cache='none'"):
        sampler(cache, denoiser)


def test_a_borrowed_lead_is_that_of_the_position_behind():
    denoiser = model(shifted=True)
    want, got = (trace(sampler("dual", denoiser, borrow_lead=borrows), PROMPTS) for borrows in (False, True))
    assert want != got
    plain = model()
    assert trace(sampler("dual", plain, borrow_lead=True), PROMPTS) == trace(sampler("dual", plain), PROMPTS)


class NoPatternRun(WindowRun):
    """Drops the attention mask, as published."""

    def plan_of(self, view):
        return super().plan_of(view)._replace(pattern=None)


class StaleRun(WindowRun):
    """Refreshes once, at the start of the run."""

    def logits(self, view):
        first = self.places[0].written < 0
        self.begun = view.step if first else 1
        return super().logits(view)

    def plan_of(self, view):
        return super().plan_of(view if self.begun == 0 else replace(view, step=max(1, view.step)))


class UnrotatedRun(WindowRun):
    """Rotates the window's keys as if it began at position 0."""

    def plan_of(self, view):
        plan = super().plan_of(view)
        self.denoiser = Unplaced(self.denoiser)
        return plan


class Unplaced:
    """A denoiser that is told the column for the position."""

    def __init__(self, denoiser):
        self.inner = getattr(denoiser, "inner", denoiser)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def logits(self, ids, *, position_ids, **rest):
        return self.inner.logits(ids, position_ids=torch.arange(ids.shape[1]).expand_as(ids), **rest)


class CountsTheOthersStepsRun(WindowRun):
    """Computes a row that has nothing left to write as long as the others of its batch go on."""

    def plan_of(self, view):
        return super().plan_of(view)._replace(spares=False)


def running(policy, run):
    """The policy, with runs of that kind."""
    body = {"start": lambda self, denoiser, rows, length: run(self, denoiser, rows, length)}
    return type(run.__name__, (type(policy),), body)()


def test_a_dropped_attention_mask_is_caught():
    with pytest.raises(AssertionError):
        check_alone("dual", running(Dual(), NoPatternRun))


@pytest.mark.parametrize("policy", [Prefix(), Dual()])
def test_a_stale_cache_is_caught(policy):
    with pytest.raises(AssertionError):
        check_by_hand(type(policy).__name__.lower(), running(policy, StaleRun))


@pytest.mark.parametrize("policy", [Prefix(), Dual()])
def test_unrotated_keys_are_caught(policy):
    with pytest.raises(AssertionError):
        check_by_hand(type(policy).__name__.lower(), running(policy, UnrotatedRun))


def test_steps_of_other_rows_are_caught():
    with pytest.raises(AssertionError):
        check_alone("delayed", running(Delayed(), CountsTheOthersStepsRun), commit="threshold", threshold=0.4)


def test_the_mutants_stand_on_sound_ground():
    """The same checks hold for the same policies unbroken, given in the same way."""
    check_alone("dual", running(Dual(), WindowRun))
    check_by_hand("prefix", running(Prefix(), WindowRun))
    check_alone("delayed", running(Delayed(), WindowRun), commit="threshold", threshold=0.4)
    check_alone("interval", running(Interval(), IntervalRun), commit="threshold", threshold=0.4)
