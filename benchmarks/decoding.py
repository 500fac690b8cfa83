"""Fast decoding against the plain masked sampler: what a step costs at a size that matters, and what quality it keeps.

Two parts, each in this process with the contenders in turn:

- a random model of a size that matters. A whole plain run would take many minutes, and all steps of a kind cost the
  same (a block's first step; its others), so a few of each are timed, and a run is their sum over its exact number of
  steps. A random model is sure of nothing, so how many tokens a step writes is planted: 1 and 3.
- the bundled checkpoint on its held-out exercises: whole runs, tokens/s, and how many answers are right.

Times are processor seconds of this process, not wall time: they hold on a machine that others use too, with one thread.

usage: python benchmarks/decoding.py [--threads 1] [--rounds 2] [--output benchmarks/results/decoding-cpu.json]
       python benchmarks/decoding.py --gpu     8 billion random weights in bfloat16, block steps eager and graphed
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from dllm_llada.adapter import LLaDAAdapter
from dllm_llada.configuration import LLaDAConfig
from dllm_llada.modeling import LLaDAModelLM
from dllm_llada.tiny.evaluate import NEW_TOKENS, prompts_with_answers

import dllm_core as dllm
from dllm_core import registry
from dllm_core.cli.generate import Generation
from dllm_core.cli.prompts import parse_record
from dllm_core.evaluation.benchmark import Benchmark, Exercise, Measurement, machine
from dllm_core.evaluation.grid import Cell, grid
from dllm_core.samplers.state import SamplerState

PRESETS = ("mdlm", "fastdllm/parallel", "fastdllm/prefix", "fastdllm/dual", "fastdllm/fast")
PLANTED = (1, 3)  # tokens that a step writes
BLOCK = 32
H200_BYTES_PER_SECOND = 4.3e12


@dataclass(frozen=True)
class Shape:
    hidden: int = 512
    layers: int = 12
    heads: int = 8
    feed_forward: int = 1536
    vocabulary: int = 32_000
    prompt: int = 512
    new_tokens: int = 256


EIGHT_BILLION = Shape(4096, 32, 32, 12_288, 126_464)


@dataclass
class Timed:
    """Processor seconds of a preset's steps: those that open a block, and the others."""

    preset: str
    batch: int
    opening: list[float] = field(default_factory=list)
    inner: list[float] = field(default_factory=list)
    opening_positions: int = 0
    inner_positions: int = 0


def random_model(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dllm.Denoiser:
    """Random weights, made on the device; the mask token is the last id."""
    config = LLaDAConfig(
        d_model=shape.hidden,
        n_heads=shape.heads,
        n_kv_heads=shape.heads,
        n_layers=shape.layers,
        mlp_hidden_size=shape.feed_forward,
        vocab_size=shape.vocabulary,
        embedding_size=shape.vocabulary,
        max_sequence_length=2048,
    )
    default = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LLaDAModelLM(config).eval()
    finally:
        torch.set_default_dtype(default)
    last = shape.vocabulary - 1
    return dllm.Denoiser(model, LLaDAAdapter(), special_ids={"mask": last, "eos": last - 1, "pad": last - 1})


def random_prompts(shape: Shape, batch: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, shape.vocabulary - 2, (batch, shape.prompt), generator=generator).tolist()


def measure_steps(denoiser: dllm.Denoiser, shape: Shape, batch: int, rounds: int, inner: int) -> list[Timed]:
    """A few steps of every preset's first block, the presets in turn at each step."""
    prompts = random_prompts(shape, batch)
    contenders = [Timed(preset, batch) for preset in PRESETS]
    options = {"commit": "quota", "max_new_tokens": shape.new_tokens, "block_size": BLOCK}
    options["suppress_tokens"] = [denoiser.eos_token_id]
    for _ in range(rounds):
        runs = []
        for cell in (cell for preset in PRESETS for cell in grid([preset], options, {})):
            sampler = registry.load("sampler", cell.sampler)(denoiser, **cell.options)
            runs.append((sampler, sampler.start(prompts)))
        for number in range(1 + inner):
            for timed, (sampler, state) in zip(contenders, runs, strict=True):
                seconds, positions = timed_step(sampler, state)
                (timed.inner if number else timed.opening).append(seconds)
                if number:
                    timed.inner_positions = positions
                else:
                    timed.opening_positions = positions
    return contenders


def timed_step(sampler: dllm.Sampler, state: SamplerState) -> tuple[float, int]:
    """(processor seconds, positions that went through the model) of one step."""
    before, began = state.stats.positions_processed, time.process_time()
    sampler.step(state)
    return time.process_time() - began, state.stats.positions_processed - before


def run_seconds(timed: Timed, shape: Shape, planted: int) -> float:
    """A whole run, from its steps; with ``prefix`` the first block's steps stand for all, which is the dearest."""
    blocks = shape.new_tokens // BLOCK
    steps = -(-BLOCK // planted)
    return blocks * (statistics.median(timed.opening) + (steps - 1) * statistics.median(timed.inner))


def size_that_matters(rounds: int) -> Iterator[dict[str, object]]:
    """The first part, a record a preset and batch."""
    shape = Shape()
    denoiser = random_model(shape)
    for batch, inner in ((1, 4), (8, 2)):
        timed = measure_steps(denoiser, shape, batch, rounds if batch == 1 else 1, inner)
        plain = run_seconds(timed[0], shape, 1)
        for each in timed:
            runs = {f"planted_{n}": run_seconds(each, shape, n) for n in PLANTED}
            yield asdict(each) | {
                "forward_passes": {f"planted_{n}": shape.new_tokens // BLOCK * -(-BLOCK // n) for n in PLANTED},
                "run_seconds_from_steps": runs,
                "ratio_to_plain": {name: plain / seconds for name, seconds in runs.items()},
            }


def bundled_checkpoint(count: int, repeats: int) -> list[dict[str, object]]:
    """The second part: whole runs on held-out exercises, one prompt at a time."""
    denoiser = dllm.load("llada-tiny")
    encoder = Generation("llada-tiny", "mdlm", dllm.sampler("mdlm", denoiser, max_new_tokens=NEW_TOKENS))
    encoder.prepare([parse_record(line, "exercise") for line in prompts_with_answers(count)], chat=None, system=None)
    exercises = [
        Exercise(one.ids, one.request.kind == "infill", one.request.extra["answer"]) for one in encoder.prepared
    ]
    cells: list[Cell] = grid(PRESETS, {"max_new_tokens": NEW_TOKENS}, {})
    benchmark = Benchmark(denoiser, cells, exercises, batch_size=1)
    spent: dict[str, float] = {}
    began, current = time.process_time(), ""
    for coming in chain(benchmark.run(repeats), [""]):
        spent[current] = time.process_time() - began
        began, current = time.process_time(), coming
    return [record_of(each, spent, repeats) for each in benchmark.measurements]


def record_of(each: Measurement, spent: dict[str, float], repeats: int) -> dict[str, object]:
    """A measurement without its texts, and the processor seconds of its repeats."""
    seconds = [spent[f"repeat {n + 1} of {repeats}: {each.cell.label}"] for n in range(repeats)]
    return {name: value for name, value in each.as_dict().items() if name != "texts"} | {"processor_seconds": seconds}


@torch.no_grad()
def on_a_gpu(rounds: int) -> Iterator[dict[str, object]]:
    """Milliseconds of a refresh and of a block step, eager and as a CUDA graph, against reading the weights once."""
    shape = EIGHT_BILLION
    denoiser = random_model(shape, "cuda", torch.bfloat16)
    read = sum(weight.numel() * weight.element_size() for weight in denoiser.model.parameters())
    read -= denoiser.model.get_input_embeddings().weight.nbytes  # of which a step looks up a few rows
    for prompt in (256, 1024):
        for batch in (1, 8):
            floor_ms = 1e3 * read / H200_BYTES_PER_SECOND
            told = one_gpu_setting(denoiser, shape, prompt, batch, rounds)
            yield told | {"floor_ms": floor_ms, "graphed_to_floor": told["block_step_graphed_ms"] / floor_ms}


def one_gpu_setting(denoiser: dllm.Denoiser, shape: Shape, prompt: int, batch: int, rounds: int) -> dict[str, object]:
    """Steps of the fast sampler itself, by the loop and as CUDA graphs; what a step writes is planted."""
    prompts = random_prompts(replace(shape, prompt=prompt), batch)
    options = {
        "commit": "quota",
        "quota": "even",
        "steps_per_block": -(-BLOCK // 3),
        "max_new_tokens": shape.new_tokens,
    }
    options |= {"block_size": BLOCK, "suppress_tokens": [denoiser.eos_token_id], "stop_at_eos": False}
    told: dict[str, object] = {"prompt": prompt, "batch": batch}
    for mode, name in (("off", "eager"), ("cuda-graph", "graphed")):
        sampler = dllm.sampler("fastdllm/dual", denoiser, compiled_step=mode, **options)
        sampler.sample(prompts)  # warms up and captures
        opening, inner = step_milliseconds(sampler, prompts, rounds)
        run_ms = shape.new_tokens // BLOCK * (opening + (options["steps_per_block"] - 1) * inner)
        told |= {f"refresh_{name}_ms": opening, f"block_step_{name}_ms": inner}
        told[f"tokens_per_second_at_3_a_forward_{name}"] = 1e3 * batch * shape.new_tokens / run_ms
    return told


def step_milliseconds(sampler: dllm.Sampler, prompts: list[list[int]], rounds: int) -> tuple[float, float]:
    """Medians of the steps that open a block and of the others, the device waited for."""
    opening, inner = [], []
    for _ in range(rounds):
        state = sampler.start(prompts)
        while not state.finished:
            times = inner if state.block.step else opening
            torch.cuda.synchronize()
            began = time.perf_counter()
            sampler.step(state)
            torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(opening), statistics.median(inner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--count", type=int, default=350, help="exercises of the bundled checkpoint")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report: dict[str, object] = {"machine": machine()}
    if args.gpu:
        report["gpu"] = list(on_a_gpu(args.rounds))
    else:
        report["shape"] = asdict(Shape())
        report["size_that_matters"] = list(size_that_matters(args.rounds))
        report["bundled"] = bundled_checkpoint(args.count, 1)
        report["gpu"] = "not measured: no GPU was at hand; run with --gpu on a machine that has one"
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        partial = args.output.with_suffix(".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(args.output)


if __name__ == "__main__":
    with torch.no_grad():
        main()
