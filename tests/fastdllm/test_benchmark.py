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


def test_the_positions_of_a_step_are_those_of_the_preset(decoding: ModuleType) -> None:
    shape = decoding.Shape(hidden=32, layers=1, heads=2, feed_forward=48, vocabulary=64, prompt=40, new_tokens=96)
    denoiser = decoding.random_model(shape)
    timed = {each.preset: each for each in decoding.measure_steps(denoiser, shape, batch=2, rounds=1, inner=2)}
    whole, seen = 2 * (40 + 96), 2 * (40 + 32 + 32)  # a window of 32 masks follows the block
    found = {name: (each.opening_positions, each.inner_positions) for name, each in timed.items()}
    assert found["mdlm"] == found["fastdllm/parallel"] == (whole, whole)
    assert found["fastdllm/prefix"] == (whole, 2 * 96)
    assert found["fastdllm/dual"] == (whole, 2 * 32)
    assert found["fastdllm/fast"][1] == 2 * 32
    assert seen <= found["fastdllm/fast"][0] < whole
    assert all(len(each.opening) == 1 and len(each.inner) == 2 for each in timed.values())


def test_a_run_is_the_sum_of_its_steps(decoding: ModuleType) -> None:
    timed = decoding.Timed("mdlm", 1, opening=[3.0, 1.0, 2.0], inner=[0.5])
    assert decoding.run_seconds(timed, decoding.Shape(new_tokens=64), planted=1) == 2 * (2.0 + 31 * 0.5)
    assert decoding.run_seconds(timed, decoding.Shape(new_tokens=64), planted=3) == 2 * (2.0 + 10 * 0.5)
