"""A training step with the memory-lean loss against one that makes the logits of every position.

Time: all run in this process on the same random model and noise, alternating, from the loss to the optimizer step.
Memory: the largest resident set of a fresh process that makes one step, and that of one which has only built model and
optimizer. Losses and gradients must be equal. Prints a table and, with --output, writes the figures with the machine's
description.

usage: python benchmarks/training.py [--repeats 5] [--threads 1] [--output benchmarks/results/training.json]

Shapes: B batch, L length, V vocabulary, N hidden tokens.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from dllm_llada.adapter import LLaDAAdapter
from dllm_llada.configuration import LLaDAConfig
from dllm_llada.modeling import LLaDAModelLM

import dllm_core as dllm
from dllm_core.noise.corruption import Corruption, apply_mask
from dllm_core.noise.schedules import get_schedule
from dllm_core.objectives.weighting import schedule_weights


@dataclass(frozen=True)
class Setting:
    vocabulary: int = 126_464
    batch: int = 4
    length: int = 512
    hidden: int = 64
    layers: int = 2


@dataclass(frozen=True)
class Result:
    setting: Setting
    hidden_tokens: int
    seconds: dict[str, list[float]]
    peak_bytes: dict[str, int]
    times_faster: dict[str, float]
    times_less_memory: dict[str, float]
    times_less_memory_of_the_step: dict[str, float]
    loss_difference: float
    gradient_difference: float


class Case:
    """A random LLaDA model, a batch whose rows are hidden to 20, 40, 60 and 80 in a hundred, and an optimizer."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        config = LLaDAConfig(
            d_model=setting.hidden,
            n_heads=4,
            n_kv_heads=4,
            n_layers=setting.layers,
            mlp_hidden_size=2 * setting.hidden,
            vocab_size=setting.vocabulary,
            embedding_size=setting.vocabulary,
            max_sequence_length=setting.length,
        )
        ids = {"mask": setting.vocabulary - 1, "eos": setting.vocabulary - 2, "pad": setting.vocabulary - 2}
        self.denoiser = dllm.Denoiser(LLaDAModelLM(config).train(), LLaDAAdapter(), special_ids=ids)
        self.objective = dllm.objective("mdlm")
        tokens = torch.randint(0, setting.vocabulary - 2, (setting.batch, setting.length))
        self.batch = {"input_ids": tokens}
        when = torch.arange(1, setting.batch + 1) / (setting.batch + 1)
        masked = torch.rand(tokens.shape) < when[:, None]
        self.corruption: Corruption = apply_mask(tokens, masked, ids["mask"], when)
        # The weights stay as they are, so that every step is the same one.
        self.optimizer = torch.optim.AdamW(self.denoiser.model.parameters(), lr=0.0, weight_decay=0.0)

    def step(self, loss_of: Callable[[Case], torch.Tensor]) -> torch.Tensor:
        """Loss, gradients, optimizer. -> the loss, scalar"""
        self.optimizer.zero_grad()
        loss = loss_of(self)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def lean(case: Case) -> torch.Tensor:
    """What `dllm train` computes."""
    return case.objective.loss(case.denoiser, case.batch, case.corruption).loss


def plain(case: Case) -> torch.Tensor:
    """The masked diffusion loss from the logits of every position, hidden or not."""
    logits = case.denoiser.model(input_ids=case.corruption.input_ids).logits  # (B, L, V)
    ids = case.batch["input_ids"]
    nll = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
    return (nll * weights_of(case) * case.corruption.masked).sum() / ids.numel()


def rows(case: Case) -> torch.Tensor:
    """From the logits of the hidden tokens, all of them at once."""
    corruption, ids = case.corruption, case.batch["input_ids"]
    logits = case.denoiser.logits(corruption.input_ids, at=corruption.masked)  # (N, V)
    nll = F.cross_entropy(logits, ids[corruption.masked], reduction="none")
    return (nll * weights_of(case)[corruption.masked]).sum() / ids.numel()


def weights_of(case: Case) -> torch.Tensor:
    """What the bound multiplies each hidden token by. (B, L)"""
    weights = schedule_weights(get_schedule("linear"), case.corruption)  # (B, 1)
    return weights.expand_as(case.corruption.masked)


LOSSES: dict[str, Callable[[Case], torch.Tensor]] = {"plain": plain, "rows": rows, "lean": lean}
NOTHING = "no step"


def differences(case: Case) -> tuple[float, float]:
    """Between plain and lean: of the loss, and the largest of any weight's gradient; both relative."""
    results = []
    for loss_of in (plain, lean):
        loss = case.step(loss_of).item()
        results.append((loss, [weight.grad.clone() for weight in case.denoiser.model.parameters()]))
    (want, slopes), (got, others) = results
    apart = [((other - slope).norm() / slope.norm()).item() for slope, other in zip(slopes, others, strict=True)]
    return abs(got - want) / want, max(apart)


def seconds_of(case: Case, repeats: int) -> dict[str, list[float]]:
    """Alternating, after the steps of `differences`, which warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    for _ in range(repeats):
        for name, loss_of in LOSSES.items():
            start = time.perf_counter()
            case.step(loss_of)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_bytes_of(name: str, threads: int) -> int:
    """The largest resident set of a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads), "--one-step", name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_bytes() -> int:
    """Of this process since it began. Not ``ru_maxrss``, which a child inherits."""
    (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def one_step(name: str) -> int:
    """Builds everything, makes one step, or none."""
    case = Case(Setting())
    if name != NOTHING:
        case.step(LOSSES[name])
    return peak_bytes()


def compare(setting: Setting, repeats: int, threads: int) -> Result:
    """Memory first, while this process is small."""
    peaks = {name: peak_bytes_of(name, threads) for name in (NOTHING, *LOSSES)}
    case = Case(setting)
    loss_difference, gradient_difference = differences(case)
    seconds = seconds_of(case, repeats)
    others = [name for name in LOSSES if name != "lean"]
    pairs = {name: zip(seconds[name], seconds["lean"], strict=True) for name in others}
    start = peaks[NOTHING]
    return Result(
        setting=setting,
        hidden_tokens=int(case.corruption.masked.sum()),
        seconds=seconds,
        peak_bytes=peaks,
        times_faster={name: statistics.median(theirs / ours for theirs, ours in pairs[name]) for name in others},
        times_less_memory={name: peaks[name] / peaks["lean"] for name in others},
        times_less_memory_of_the_step={name: (peaks[name] - start) / (peaks["lean"] - start) for name in others},
        loss_difference=loss_difference,
        gradient_difference=gradient_difference,
    )


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def show(result: Result) -> None:
    told = {"plain": "logits of all positions", "rows": "logits of hidden tokens", "lean": "Denoiser.nll"}
    print(f"{'':<26} {'seconds':>8} {'peak GiB':>9} {'of the step':>12}")
    for name, words in told.items():
        peak, start = result.peak_bytes[name], result.peak_bytes[NOTHING]
        median = statistics.median(result.seconds[name])
        print(f"{words:<26} {median:>8.2f} {peak / 2**30:>9.2f} {(peak - start) / 2**30:>12.2f}")
    faster, less = result.times_faster["plain"], result.times_less_memory["plain"]
    print(f"{faster:.1f} times faster, {less:.1f} times less memory than from the logits of all positions;")
    apart = f"loss {result.loss_difference:.1e}, gradients {result.gradient_difference:.1e}"
    print(f"relative differences: {apart}; {result.hidden_tokens} hidden tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one-step", choices=[NOTHING, *LOSSES], help="print the peak memory of one step in bytes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one_step:
        print(one_step(args.one_step))
        return
    result = compare(Setting(), args.repeats, args.threads)
    show(result)
    if args.output:
        text = json.dumps({"machine": machine(), "results": [asdict(result)]}, indent=2)
        partial = args.output.with_suffix(".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(args.output)


if __name__ == "__main__":
    main()
