"""What watching costs: runs with and without the live view by turns, in one process, on the CPU.

    python benchmarks/live_view.py [--rounds N] [--output FILE]

Every figure is a ratio of two runs that followed each other, as the speed of a shared machine drifts, and counts the
processor's time in this process, which others on the machine do not add to. The terminal is a string in memory: what a
terminal emulator takes to show the frames is its own time.
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


def seconds_of_run(sampler: dllm.Sampler, prompt: list[int], *, watched: bool) -> float:
    """Of the processor, from the first step to the last; loading and the canvas are left out."""
    state = sampler.start([prompt])
    began = time.process_time()
    if watched:
        console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
        with view_of_run(console, sampler, state, [PROMPT]) as view:
            while not state.finished:
                view.show(sampler.step(state))
    else:
        while not state.finished:
            sampler.step(state)
    return time.process_time() - began


def measure(name: str, denoiser: dllm.Denoiser, rounds: int) -> dict[str, object]:
    """The median ratio of neighbours, with the quartiles; every other pair begins with the watched run."""
    length = NEW_TOKENS[name]
    sampler = dllm.sampler("mdlm", denoiser, max_new_tokens=length, steps=length, block_size=length)
    prompt = denoiser.tokenizer.encode(PROMPT)
    plain, ratios = [], []
    seconds_of_run(sampler, prompt, watched=True)  # warms up
    for number in range(rounds):
        order = (number % 2 == 0, number % 2 == 1)
        taken = {watched: seconds_of_run(sampler, prompt, watched=watched) for watched in order}
        plain.append(taken[False])
        ratios.append(taken[True] / taken[False])
    low, middle, high = statistics.quantiles(ratios, n=4)
    weights = sum(weight.numel() for weight in denoiser.model.parameters())
    return {
        "model": name,
        "weights": weights,
        "steps": length,
        "seconds_without": round(statistics.median(plain), 4),
        "ratio": round(middle, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
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
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "results": results}
    arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
