"""Steps inside a block as one function: the loop's tokens and counts, one graph without a break, one flag a step."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dllm_core as dllm
from dllm_core.conformance.deep import deep_denoiser
from dllm_core.errors import OptionError
from dllm_core.samplers import compiled

VOCAB, MASK = 12, 12
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
# So that blocks take several steps, of which some write several tokens.
PACE = {
    "core/quota": {"steps": 8},
    "fastdllm/threshold": {"threshold": 0.6},
    "fastdllm/hierarchical": {"threshold": 0.6, "low_threshold": 0.5},
}
RULES = ["core/quota", "threshold", "factor", "frechet", "entropy", "hierarchical", "draft"]
ASKS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


class Questions(TorchDispatchMode):
    """Counts operators for whose value the host waits."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name().split(".")[0] in ASKS
        return func(*args, **(kwargs or {}))


def model(shifted: bool = False) -> dllm.Denoiser:
    sharp = deep_denoiser(VOCAB, 64, pad=0, eos=11, shifted=shifted)
    with torch.no_grad():
        sharp.model.get_output_embeddings().weight.mul_(3)
    return sharp


def shallow() -> dllm.Denoiser:
    """One layer of the model: what is compiled takes torch a time that grows with every layer."""
    one = model()
    del one.model.model.layers[1:]
    one.model.config.num_hidden_layers = 1
    return one


def sampler(name: str, denoiser: dllm.Denoiser, **options: object) -> dllm.Sampler:
    commit = options.setdefault("commit", "fastdllm/threshold")
    return dllm.sampler(name, denoiser, max_new_tokens=12, block_size=5, **PACE.get(commit, {}), **options)


def trace(one: dllm.Sampler, prompts: list[list[int]] = PROMPTS) -> tuple[list, dict[str, float]]:
    """Every step's canvas, block, ends and confidences, and the counts of the run."""
    state, steps = one.start(prompts), []
    while not state.finished:
        step = one.step(state)
        told = step.confidence.nan_to_num(-1).isneginf(), step.confidence.isnan()
        steps.append([step.input_ids, step.committed, step.done, *told, step.confidence.nan_to_num(0, neginf=0)])
    counts = one.finish(state).stats
    return steps, {name: getattr(counts, name) for name in ("forward_passes", "positions_processed", "host_syncs")}


def assert_equal_runs(name: str, denoiser: dllm.Denoiser, mode: str = "eager", **options: object) -> dllm.Sampler:
    want, counts = trace(sampler(name, denoiser, **options))
    one = sampler(name, denoiser, **options, compiled_step=mode)
    for _ in range(2):  # the second run takes over what the first one built
        got, got_counts = trace(one)
        assert len(got) == len(want)
        for mine, theirs in zip(got, want, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine[:-1], theirs[:-1], strict=True))
            torch.testing.assert_close(mine[-1], theirs[-1], rtol=1e-4, atol=1e-5)
        assert got_counts == counts
    assert any(cache.steps for cache in one.compiled.free)  # not all blocks were done in the step that opens them
    return one


@pytest.mark.parametrize("cache", ["fastdllm/dual", "fastdllm/prefix", "fastdllm/vicinity", "fastdllm/delayed"])
@pytest.mark.parametrize("rule", RULES)
def test_a_ragged_batch_gets_the_tokens_confidences_and_counts_of_the_loop(rule, cache):
    rule = rule if "/" in rule else f"fastdllm/{rule}"
    assert_equal_runs("mdlm", model(), commit=rule, cache=cache)


@pytest.mark.parametrize("shifted", [False, True], ids=["", "shifted"])
@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": [5, 6, 7]},
        {"confidence": "random", "confidence_temperature": 0.5},
        {"confidence": "margin", "suppress_tokens": (3,), "suppress_confidence_tokens": (4, 5)},
        {"guidance_scale": 1.0},
        {"stop_at_eos": False, "suffix_window": 5},
        {"refresh_every": 2, "borrow_lead": True},
    ],
    ids=lambda more: " ".join(more),
)
def test_so_do_draws_guidance_windows_and_shifted_logits(more, shifted):
    assert_equal_runs("mdlm", model(shifted), cache="fastdllm/dual", **more)


@pytest.mark.parametrize("shifted", [False, True], ids=["", "shifted"])
@pytest.mark.parametrize("grid", ["absolute", "completion"])
def test_so_does_block_diffusion(grid, shifted):
    assert_equal_runs("bd3lm", model(shifted), block_grid=grid)


@pytest.mark.parametrize("forced", [False, True])
def test_so_does_the_fast_preset(forced):
    assert_equal_runs("fastdllm/fast", model(), forced_commit=forced)


def test_infilling_too():
    canvases = [[1, MASK, 3, MASK, MASK, 5], [MASK, 7, 8]]
    want = sampler("mdlm", model(), cache="fastdllm/dual").infill(canvases).sequences
    assert torch.equal(
        sampler("mdlm", model(), cache="fastdllm/dual", compiled_step="eager").infill(canvases).sequences, want
    )


def test_what_was_built_serves_all_blocks_and_the_next_runs_of_about_that_length():
    one = sampler("mdlm", model(), cache="fastdllm/dual", compiled_step="eager", stop_at_eos=False)
    first = one.sample(PROMPTS)
    (cache,) = one.compiled.free
    assert (cache.rows, cache.length, len(cache.steps)) == (3, compiled.BUCKET, 2)  # blocks of 5, the last one of 2
    one.sample([[9, 9, 9, 9, 9], [1], [2, 3]])
    assert one.compiled.free == [cache]
    assert len(cache.steps) == 2
    assert torch.equal(one.sample(PROMPTS).sequences, first.sequences)  # what other runs left is not looked at


def test_runs_that_take_turns_do_not_share_buffers():
    one = sampler("mdlm", model(), cache="fastdllm/dual", compiled_step="eager", stop_at_eos=False)
    prompts = [[[1, 2, 3]], [[7, 8, 9]]]
    want = [one.sample(prompt).sequences for prompt in prompts]
    states = [one.start(prompt) for prompt in prompts]
    assert states[0].cache.cache is not states[1].cache.cache
    while not all(state.finished for state in states):
        for state in states:
            if not state.finished:
                one.step(state)
    assert [one.finish(state).sequences.tolist() for state in states] == [each.tolist() for each in want]


@pytest.mark.parametrize("rule", RULES)
def test_a_step_asks_the_device_nothing_and_the_host_one_flag(rule):
    rule = rule if "/" in rule else f"fastdllm/{rule}"
    one = sampler("mdlm", model(), commit=rule, cache="fastdllm/dual", compiled_step="eager", temperature=0.5)
    state = one.start(PROMPTS)
    one.step(state)
    with torch.no_grad(), Questions() as asked:
        left = one.compiled.step(state, state.input_ids)
    assert asked.count == 0
    with Questions() as asked:
        bool(left.is_done)
    assert asked.count == 1  # the counter can count


GRAPHS: list[object] = []


def counting(module, _):
    GRAPHS.append(module)
    return module.forward


@pytest.fixture
def compiles(monkeypatch):
    """torch.compile without making machine code, its graphs counted."""
    whole = torch.compile

    def compile_(step, *, fullgraph, dynamic, isolate_recompiles):
        assert fullgraph
        return whole(step, fullgraph=True, dynamic=dynamic, isolate_recompiles=isolate_recompiles, backend=counting)

    monkeypatch.setattr(torch, "compile", compile_)
    torch._dynamo.reset()
    GRAPHS.clear()


def assert_one_graph(denoiser: dllm.Denoiser, prompts: list[list[int]]) -> None:
    options = {"max_new_tokens": 16, "block_size": 8, "cache": "fastdllm/dual", "stop_at_eos": False}
    options |= {"commit": "fastdllm/threshold", "threshold": 1.0, "temperature": 0.5}
    want = dllm.sampler("mdlm", denoiser, **options).sample(prompts)
    got = dllm.sampler("mdlm", denoiser, **options, compiled_step="compile").sample(prompts)
    assert torch.equal(got.sequences, want.sequences)
    assert len(GRAPHS) == 1  # and none of the steps of both blocks compiles anew


def test_a_step_compiles_as_one_graph_without_a_break(compiles):
    assert_one_graph(shallow(), PROMPTS)


@pytest.mark.slow
def test_so_does_that_of_a_bundled_checkpoint(compiles):
    assert_one_graph(dllm.load("llada-tiny", dtype="float32"), [[20, 21, 22], [30, 31, 32, 33, 34]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shifted", "options"),
    [
        ("mdlm", False, {"cache": "fastdllm/dual", "commit": "core/quota", "top_k": 4, "temperature": 0.5}),
        ("mdlm", True, {"cache": "fastdllm/dual", "commit": "fastdllm/entropy", "guidance_scale": 1.0}),
        ("bd3lm", False, {"commit": "fastdllm/factor"}),
    ],
)
def test_so_does_every_kind_of_step(name, shifted, options, compiles):
    one = assert_equal_runs(name, model(shifted), "compile", **options)
    assert len(GRAPHS) == sum(len(cache.steps) for cache in one.compiled.free)


def test_forms_of_step_do_not_count_against_each_other(compiles):
    one = sampler("mdlm", shallow(), cache="fastdllm/dual", compiled_step="compile", stop_at_eos=False)
    with torch._dynamo.config.patch(recompile_limit=1):
        one.sample(PROMPTS[:1])  # blocks of 5 and of 2
    assert len(GRAPHS) == 2


@pytest.mark.slow
def test_a_step_compiles_to_machine_code():
    assert_equal_runs("mdlm", model(), "compile", cache="fastdllm/dual", stop_at_eos=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("rule", ["core/quota", "fastdllm/threshold"])
def test_a_cuda_graph_gives_the_tokens_of_the_loop(rule):
    denoiser = model()
    denoiser.model.to("cuda")
    assert_equal_runs("mdlm", denoiser, "cuda-graph", commit=rule, cache="fastdllm/dual")
    assert_equal_runs("mdlm", denoiser, "cuda-graph", commit=rule, cache="fastdllm/dual", temperature=1.0, top_k=4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mdlm", {"compiled_step": "graph"}, "compiled_step must be one of off, auto"),
        ("mdlm", {"compiled_step": "compile"}, "NoCache has none; use cache='fastdllm/dual'"),
        ("mdlm", {"compiled_step": "eager", "cache": "fastdllm/interval"}, "Interval has none"),
        (
            "mdlm",
            {"compiled_step": "eager", "cache": "fastdllm/dual", "commit": "fastdllm/klass"},
            "history.*use commit",
        ),
        ("fastdllm/lopa", {"compiled_step": "eager", "cache": "fastdllm/dual"}, "LoPASampler has steps of its own"),
        ("mdlm", {"compiled_step": "cuda-graph", "cache": "fastdllm/dual"}, "on cpu.*use compiled_step='compile'"),
    ],
)
def test_what_has_no_such_form_is_refused_in_a_line(name, options, message):
    with pytest.raises(OptionError, match=message) as told:
        sampler(name, model(), **options)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("cache", ["none", "fastdllm/dual"])
def test_auto_does_without_where_there_is_none(cache):
    assert sampler("mdlm", model(), cache=cache, compiled_step="auto").compiled is None


class Forgetful(compiled.CompiledSteps):
    """Mutant: keeps the number of the step that it first saw, as a graph does whose inputs are not copied."""

    def _built(self, cache, now):
        step = super()._built(cache, now)
        return lambda later: step(later._replace(step=now.step))


def test_an_input_that_is_not_copied_is_caught(monkeypatch):
    monkeypatch.setattr(compiled, "CompiledSteps", Forgetful)
    with pytest.raises(AssertionError):
        assert_equal_runs("mdlm", model(), cache="fastdllm/dual", temperature=1.0, commit="core/quota")


def test_slots_that_are_added_for_the_length_and_looked_at_are_caught(monkeypatch):
    wide = compiled.widened
    monkeypatch.setattr(compiled, "widened", lambda *each: (plan := wide(*each))._replace(pattern=plan.pattern | True))
    with pytest.raises(AssertionError):
        assert_equal_runs("mdlm", model(), cache="fastdllm/dual")
