"""Fast decoding against the plain masked sampler: what it costs at a size that matters, and what quality it keeps.

Two parts, one after the other in this process, each with the contenders in turn:

- a random model of a size that matters. One prompt: whole runs, which take turns block by block. Eight prompts: the
  first steps of the first block, and a run is their sum over its exact number of steps, as all steps of a kind cost the
  same (a block's first step; its others). A random model is sure of nothing, so what a step writes is planted: the
  plain sampler writes 1 token a step, the others 3.
- the bundled checkpoint on its held-out exercises: whole runs, tokens/s, and how many answers are right.

Times are processor seconds of this process, not wall time: they hold on a machine that others use too, with one thread.

usage: python benchmarks/decoding.py [--threads 1] [--output benchmarks/results/decoding-cpu.json]
       python benchmarks/decoding.py --gpu     8 billion random weights in bfloat16, block steps eager and graphed
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
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
PLAIN = PRESETS[0]
PLANTED = {preset: 1 if preset == PLAIN else 3 for preset in PRESETS}  # tokens that a step writes
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
    """Processor seconds of a preset's steps: those that open a block, and the others of each block."""

    preset: str
    opening: list[float] = field(default_factory=list)
    inner: list[list[float]] = field(default_factory=list)

    @property
    def usual_inner(self) -> float:
        return statistics.median(chain.from_iterable(self.inner))


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


def measure_runs(
    denoiser: dllm.Denoiser, shape: Shape, batch: int, turns: int, most: int
) -> Iterator[tuple[Timed, SamplerState]]:
    """Runs of all presets, which take turns.

    Args:
        turns: how many blocks of each run.
        most: how many steps of a block at most; all the others wait for the next turn of its run.
    """
    contenders = [(Timed(preset), *begun(denoiser, shape, batch, preset)) for preset in PRESETS]
    for turn in range(turns):
        for timed, sampler, state in contenders:
            print(f"batch {batch}, turn {turn + 1} of {turns}: {timed.preset}", file=sys.stderr, flush=True)
            take_turn(timed, sampler, state, most)
    for timed, _, state in contenders:
        yield timed, state


def begun(denoiser: dllm.Denoiser, shape: Shape, batch: int, preset: str) -> tuple[dllm.Sampler, SamplerState]:
    """A run of that preset before its first step; it writes what is planted, whatever the model thinks of it."""
    options = {"commit": "quota", "quota": "even", "steps_per_block": -(-BLOCK // PLANTED[preset])}
    options |= {"max_new_tokens": shape.new_tokens, "block_size": BLOCK, "suppress_tokens": [denoiser.eos_token_id]}
    (cell,) = grid([preset], options, {})
    sampler = registry.load("sampler", cell.sampler)(denoiser, **cell.options)
    return sampler, sampler.start(random_prompts(shape, batch))


def take_turn(timed: Timed, sampler: dllm.Sampler, state: SamplerState, most: int) -> None:
    """The next block of a run, or its first steps."""
    timed.inner.append([])
    number = state.block.number
    for step in range(most):
        if state.finished or state.block.number != number:
            break
        began = time.process_time()
        sampler.step(state)
        (timed.inner[-1] if step else timed.opening).append(time.process_time() - began)


def run_seconds(timed: Timed, shape: Shape, planted: int) -> float:
    """A whole run that writes so much a step, from the steps measured."""
    blocks, steps = shape.new_tokens // BLOCK, -(-BLOCK // planted)
    return blocks * (statistics.median(timed.opening) + (steps - 1) * timed.usual_inner)


def size_that_matters(shape: Shape) -> Iterator[dict[str, object]]:
    """The first part, a record a preset and batch."""
    denoiser = random_model(shape)
    for batch, turns, most in ((1, shape.new_tokens // BLOCK, BLOCK), (8, 1, 11)):
        plain: dict[str, float] = {}
        for timed, state in measure_runs(denoiser, shape, batch, turns, most):
            told = record_of_run(timed, state, shape)
            plain = plain or told["run_seconds"]
            ratios = {name: plain["planted_1"] / seconds for name, seconds in told["run_seconds"].items()}
            yield {"preset": timed.preset, "batch": batch} | told | {"ratio_to_plain": ratios}


def record_of_run(timed: Timed, state: SamplerState, shape: Shape) -> dict[str, object]:
    """What is known of a run: its time, at the planted rate from its own blocks where it was run to its end."""
    planted = PLANTED[timed.preset]
    blocks = [first + sum(others) for first, others in zip(timed.opening, timed.inner, strict=True)]
    seconds = {f"planted_{n}": run_seconds(timed, shape, n) for n in sorted({1, planted})}
    if state.finished:
        seconds[f"planted_{planted}"] = sum(blocks)
    counts = ("forward_passes", "positions_processed", "logit_rows", "host_syncs", "cache_bytes")
    return {
        "planted": planted,
        "is_whole_run": state.finished,
        "opening_seconds": statistics.median(timed.opening),
        "inner_seconds": timed.usual_inner,
        "block_seconds": blocks,
        "counts": {name: getattr(state.stats, name) for name in counts},
        "run_seconds": seconds,
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


def on_a_gpu(rounds: int) -> Iterator[dict[str, object]]:
    """Milliseconds of a refresh and of a block step, eager and as a CUDA graph, against reading the weights once."""
    shape = EIGHT_BILLION
    denoiser = random_model(shape, "cuda", torch.bfloat16)
    read = sum(weight.numel() * weight.element_size() for weight in denoiser.model.parameters())
    read -= denoiser.model.get_input_embeddings().weight.nbytes  # of which a step looks up a few rows
    for prompt in (256, 1024):
        for batch in (1, 8):
            floor_ms = 1e3 * read / H200_BYTES_PER_SECOND
            told = eager_and_graphed(denoiser, replace(shape, prompt=prompt), batch, rounds)
            yield told | {"floor_ms": floor_ms, "graphed_to_floor": told["block_step_graphed_ms"] / floor_ms}


MODES = {"eager": "off", "graphed": "cuda-graph"}  # values of compiled_step


def eager_and_graphed(
    denoiser: dllm.Denoiser, shape: Shape, batch: int, rounds: int, modes: Mapping[str, str] = MODES
) -> dict[str, object]:
    """Steps of the sampler itself, by the loop and as CUDA graphs; what a step writes is planted."""
    prompts = random_prompts(shape, batch)
    options = {
        "commit": "quota",
        "quota": "even",
        "steps_per_block": -(-BLOCK // 3),
        "max_new_tokens": shape.new_tokens,
    }
    options |= {"block_size": BLOCK, "suppress_tokens": [denoiser.eos_token_id], "stop_at_eos": False}
    told: dict[str, object] = {"prompt": shape.prompt, "batch": batch}
    for name, mode in modes.items():
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
    wait = torch.cuda.synchronize if sampler.denoiser.device.type == "cuda" else lambda: None
    for _ in range(rounds):
        state = sampler.start(prompts)
        while not state.finished:
            times = inner if state.block.step else opening
            wait()
            began = time.perf_counter()
            sampler.step(state)
            wait()
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(opening), statistics.median(inner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--count", type=int, default=350, help="exercises of the bundled checkpoint")
    parser.add_argument("--rounds", type=int, default=2, help="runs that the times on a GPU are medians over")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.gpu and not torch.cuda.is_available():
        parser.error("--gpu needs a GPU, and torch finds none; leave it out to measure on the CPU")
    torch.set_num_threads(args.threads)
    report: dict[str, object] = {"machine": machine()}
    if args.gpu:
        report["gpu"] = list(on_a_gpu(args.rounds))
    else:
        report["shape"] = asdict(Shape())
        report["size_that_matters"] = list(size_that_matters(Shape()))
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
