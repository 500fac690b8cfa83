"""benchmarks/decoding.py on a model that takes no time: what it counts is what the presets do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/decoding.py"


@pytest.fixture(scope="module")
def decoding() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_decoding", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = {"hidden": 32, "layers": 1, "heads": 2, "feed_forward": 48, "vocabulary": 64, "prompt": 40, "new_tokens": 96}


@pytest.fixture(scope="module")
def denoiser(decoding: ModuleType) -> object:
    return decoding.random_model(decoding.Shape(**SMALL))


def test_a_whole_run_takes_the_steps_and_positions_of_its_preset(decoding: ModuleType, denoiser: object) -> None:
    shape = decoding.Shape(**SMALL)
    runs = {timed.preset: (timed, state) for timed, state in decoding.measure_runs(denoiser, shape, 1, 3, 32)}
    assert list(runs) == list(decoding.PRESETS)
    told = {name: decoding.record_of_run(*run, shape) for name, run in runs.items()}
    counts = {name: each["counts"] for name, each in told.items()}
    passes = {name: each["forward_passes"] for name, each in counts.items()}
    assert passes == {"mdlm": 96, **dict.fromkeys(decoding.PRESETS[1:], 3 * 11)}  # a block of 32 by 1, and by 3
    positions = {name: each["positions_processed"] for name, each in counts.items()}
    whole, windowed = 40 + 96, 40 + 32 + 32 + 1  # a window of 32 masks and the last position follow the first block
    assert (positions["mdlm"], positions["fastdllm/parallel"]) == (96 * whole, 33 * whole)
    assert positions["fastdllm/prefix"] == 3 * whole + 10 * (96 + 64 + 32)
    assert positions["fastdllm/dual"] == 3 * whole + 10 * 3 * 32
    assert positions["fastdllm/fast"] == windowed + 2 * whole + 10 * 3 * 32
    for name, (timed, state) in runs.items():
        assert state.finished
        steps = 32 if name == "mdlm" else 11
        assert (len(timed.opening), [len(each) for each in timed.inner]) == (3, [steps - 1] * 3)
        assert told[name]["run_seconds"][f"planted_{told[name]['planted']}"] == sum(told[name]["block_seconds"])


def test_a_turn_takes_no_more_steps_than_it_may(decoding: ModuleType, denoiser: object) -> None:
    for timed, state in decoding.measure_runs(denoiser, decoding.Shape(**SMALL), 2, turns=1, most=4):
        assert (len(timed.opening), [len(each) for each in timed.inner]) == (1, [3])
        assert state.stats.forward_passes == 4
        assert not state.finished


def test_a_run_is_the_sum_of_its_steps(decoding: ModuleType) -> None:
    timed = decoding.Timed("mdlm", opening=[3.0, 1.0, 2.0], inner=[[0.5, 0.5], [9.0]])
    assert decoding.run_seconds(timed, decoding.Shape(new_tokens=64), planted=1) == 2 * (2.0 + 31 * 0.5)
    assert decoding.run_seconds(timed, decoding.Shape(new_tokens=64), planted=3) == 2 * (2.0 + 10 * 0.5)


def test_what_runs_on_a_gpu_runs_on_a_cpu_with_the_step_that_a_graph_captures(
    decoding: ModuleType, denoiser: object
) -> None:
    """The script's own functions, with ``eager``, the function that is captured, in the graph's place."""
    shape = decoding.Shape(**SMALL)
    told = decoding.eager_and_graphed(denoiser, shape, 2, 1, {"eager": "off", "graphed": "eager"})
    assert {"refresh_eager_ms", "block_step_graphed_ms", "tokens_per_second_at_3_a_forward_graphed"} < told.keys()
    assert all(value > 0 for value in told.values())


def test_without_a_gpu_it_says_so(decoding: ModuleType, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["decoding.py", "--gpu"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        decoding.main()
    assert "--gpu needs a GPU, and torch finds none; leave it out to measure on the CPU" in capsys.readouterr().err
