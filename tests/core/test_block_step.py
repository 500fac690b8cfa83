"""The block step: one graph without a break, no question to the device, and the tokens of the sampler's own loop."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dllm_core as dllm
from dllm_core import registry
from dllm_core.errors import OptionError
from dllm_core.models.cache import BlockCache
from dllm_core.samplers.block_step import BlockPlace, block_step
from dllm_core.samplers.options import MaskedOptions

PROMPT, BLOCK = 12, 8
RULES = ("core/quota", "fastdllm/threshold", "fastdllm/factor", "fastdllm/frechet", "fastdllm/entropy")
ASKS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


class Questions(TorchDispatchMode):
    """Counts operators for whose value the host waits."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name().split(".")[0] in ASKS
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def denoiser():
    return dllm.load("llada-tiny", dtype="float32")


def opened(denoiser):
    """A cache that holds a canvas of one block behind a prompt, and where that block stands."""
    canvas = torch.randint(20, 60, (2, PROMPT + BLOCK), generator=torch.Generator().manual_seed(0))
    canvas[:, PROMPT:] = denoiser.mask_token_id
    cache = BlockCache(2, PROMPT + BLOCK)
    every = torch.arange(PROMPT + BLOCK).repeat(2, 1)
    cache.place(every, PROMPT + BLOCK)
    allowed = torch.ones(2, 1, PROMPT + BLOCK, PROMPT + BLOCK, dtype=torch.bool)
    denoiser.logits(canvas, position_ids=every, attention=allowed, cache=cache)
    positions = every[:, PROMPT:]
    cache.place(positions, PROMPT + BLOCK)
    return (
        canvas[:, PROMPT:].clone(),
        cache,
        BlockPlace(positions, torch.ones(2, BLOCK, dtype=torch.bool), allowed[:, :, PROMPT:]),
    )


def run(step, tokens, place):
    """All steps of a block, and how many there were."""
    quota, done, count = torch.ones(2, dtype=torch.long), False, 0
    while not done:
        tokens, flag = step(tokens, place, quota)
        done, count = bool(flag), count + 1
    return tokens, count


@torch.no_grad()
@pytest.mark.parametrize("name", RULES)
def test_one_graph_without_a_break_gives_the_same_tokens(denoiser, name: str) -> None:
    rule = registry.load("commit rule", name)()
    tokens, cache, place = opened(denoiser)
    want = run(block_step(denoiser, rule, MaskedOptions(), cache), tokens, place)
    torch._dynamo.reset()
    tokens, cache, place = opened(denoiser)
    compiled = torch.compile(block_step(denoiser, rule, MaskedOptions(), cache), fullgraph=True, backend="eager")
    got = run(compiled, tokens, place)
    assert torch.equal(got[0], want[0])
    assert got[1] == want[1]
    assert not (got[0] == denoiser.mask_token_id).any()


@torch.no_grad()
def test_the_whole_block_is_one_compiled_graph(denoiser) -> None:
    graphs = []

    def count(module, _):
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    tokens, cache, place = opened(denoiser)
    rule = registry.load("commit rule", "fastdllm/threshold")()
    run(torch.compile(block_step(denoiser, rule, MaskedOptions(), cache), fullgraph=True, backend=count), tokens, place)
    assert len(graphs) == 1  # no break, and no step of the block compiles anew


@torch.no_grad()
@pytest.mark.slow
def test_the_step_compiles_to_machine_code(denoiser) -> None:
    rule = registry.load("commit rule", "fastdllm/threshold")()
    tokens, cache, place = opened(denoiser)
    want = run(block_step(denoiser, rule, MaskedOptions(), cache), tokens, place)[0]
    torch._dynamo.reset()
    tokens, cache, place = opened(denoiser)
    step = torch.compile(block_step(denoiser, rule, MaskedOptions(), cache), fullgraph=True)
    assert torch.equal(run(step, tokens, place)[0], want)


@torch.no_grad()
@pytest.mark.parametrize("name", RULES)
def test_a_step_asks_the_device_nothing_and_the_host_one_flag(denoiser, name: str) -> None:
    rule = registry.load("commit rule", name)()
    tokens, cache, place = opened(denoiser)
    step = block_step(denoiser, rule, MaskedOptions(), cache)
    with Questions() as asked:
        stepped = step(tokens, place, torch.ones(2, dtype=torch.long))
    assert asked.count == 0
    with Questions() as asked:
        bool(stepped.is_done)
    assert asked.count == 1  # the counter can count


@torch.no_grad()
@pytest.mark.parametrize("name", ["core/quota", "fastdllm/threshold"])
def test_the_tokens_are_those_of_the_samplers_own_loop(denoiser, name: str) -> None:
    tokens, cache, place = opened(denoiser)
    options = {"commit": name, "max_new_tokens": BLOCK, "block_size": BLOCK, "stop_at_eos": False}
    prompt = torch.randint(20, 60, (2, PROMPT + BLOCK), generator=torch.Generator().manual_seed(0))[:, :PROMPT]
    own = dllm.sampler("mdlm", denoiser, **options, cache="fastdllm/dual").sample(prompt.tolist())
    got, steps = run(block_step(denoiser, registry.load("commit rule", name)(), MaskedOptions(), cache), tokens, place)
    assert torch.equal(got, own.sequences[:, PROMPT:])
    assert steps == own.stats.forward_passes


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"confidence": "random"}, {"guidance_scale": 1.0}])
def test_what_is_no_pure_function_of_the_block_is_refused(denoiser, options: dict) -> None:
    with pytest.raises(OptionError, match="greedy"):
        block_step(denoiser, registry.load("commit rule", "core/quota")(), MaskedOptions(**options), BlockCache(1, 4))


def test_a_rule_with_a_history_is_refused(denoiser) -> None:
    with pytest.raises(OptionError, match="history"):
        block_step(denoiser, registry.load("commit rule", "fastdllm/klass")(), MaskedOptions(), BlockCache(1, 4))
