"""What watching costs: the share of the live view in the time of a run, on the CPU.

    python benchmarks/live_view.py [--rounds N] [--output FILE]

Counted is the processor's time of this process, to which others on the machine do not add, inside one run: two runs
differ by more than the view costs. The terminal is a string in memory: what a terminal emulator takes to show frames is
its own time.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console

import dllm_core as dllm
from dllm_core.display.run_view import view_of_run
from dllm_core.evaluation.benchmark import machine

RESULTS = Path(__file__).parent / "results" / "live-view-cpu.json"
BUNDLED = "llada-tiny"
PROMPT = "345+799="
NEW_TOKENS = {"bundled": 32, "larger": 64}
LARGER = {"d_model": 512, "mlp_hidden_size": 2048, "n_layers": 8}  # random weights; speed is the same


def larger(denoiser: dllm.Denoiser) -> dllm.Denoiser:
    """A model of the same family and tokenizer, of 25 to 40 million random weights."""
    config = copy.deepcopy(denoiser.model.config)
    config.update(LARGER)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = type(denoiser.model)(config).eval()
    return dllm.Denoiser(model, denoiser.adapter, denoiser.tokenizer)


def watched_run(sampler: dllm.Sampler, prompt: list[int]) -> tuple[float, float]:
    """(seconds of the run, seconds of them that the view took), of the processor; loading is left out."""
    state = sampler.start([prompt])
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    clock = time.process_time
    began = clock()
    drawing = -began
    with view_of_run(console, sampler, state, [PROMPT]) as view:
        drawing += clock()
        while not state.finished:
            step = sampler.step(state)
            before = clock()
            view.show(step)
            drawing += clock() - before
        before = clock()
    ended = clock()
    return ended - began, drawing + ended - before


def measure(name: str, denoiser: dllm.Denoiser, rounds: int) -> dict[str, object]:
    """The median share of the view in the time of the steps, with the quartiles; the first run warms up."""
    length = NEW_TOKENS[name]
    sampler = dllm.sampler("mdlm", denoiser, max_new_tokens=length, steps=length, block_size=length, stop_at_eos=False)
    prompt = denoiser.tokenizer.encode(PROMPT)
    runs = [watched_run(sampler, prompt) for _ in range(rounds + 1)][1:]
    low, middle, high = statistics.quantiles([drawing / (whole - drawing) for whole, drawing in runs], n=4)
    return {
        "model": name,
        "weights": sum(weight.numel() for weight in denoiser.model.parameters()),
        "steps": length,
        "seconds_of_steps": round(statistics.median(whole - drawing for whole, drawing in runs), 4),
        "overhead": round(middle, 4),
        "overhead_quartiles": [round(low, 4), round(high, 4)],
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    bundled = dllm.load(BUNDLED, device="cpu")
    models = {"bundled": bundled, "larger": larger(bundled)}
    results = [measure(name, denoiser, arguments.rounds) for name, denoiser in models.items()]
    record = {"machine": machine(), "results": results}
    arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
