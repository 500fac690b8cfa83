"""The masked sampler against a plain implementation that sends the whole canvas through the head at every step.

Both run in this process on the same random model, alternating; the tokens must be identical. Prints a table and, with
--output, writes the figures with the machine's description.

usage: python benchmarks/sampling.py [--repeats 3] [--threads 1] [--output benchmarks/results/sampling.json]

Shapes: B batch, L length, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from dllm_llada.adapter import LLaDAAdapter
from dllm_llada.configuration import LLaDAConfig
from dllm_llada.modeling import LLaDAModelLM

import dllm_core as dllm


@dataclass(frozen=True)
class Setting:
    vocabulary: int
    batch: int
    hidden: int = 64
    layers: int = 2
    prompt: int = 32
    new_tokens: int = 32
    block: int = 16


@dataclass(frozen=True)
class Result:
    setting: Setting
    plain_seconds: list[float]
    ours_seconds: list[float]
    ratio_median: float
    identical: bool
    plain_logit_rows: int
    ours_logit_rows: int


def build(setting: Setting) -> dllm.Denoiser:
    """A random LLaDA model of that size; the mask token is the last id."""
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=setting.hidden,
        n_heads=4,
        n_kv_heads=4,
        n_layers=setting.layers,
        mlp_hidden_size=2 * setting.hidden,
        vocab_size=setting.vocabulary,
        embedding_size=setting.vocabulary,
        max_sequence_length=512,
        init_std=0.2,
    )
    ids = {"mask": setting.vocabulary - 1, "eos": setting.vocabulary - 2, "pad": setting.vocabulary - 2}
    return dllm.Denoiser(LLaDAModelLM(config).eval(), LLaDAAdapter(), special_ids=ids)


def prompts_of(setting: Setting) -> list[list[int]]:
    """Ragged prompts, so that padding is part of the work."""
    generator = torch.Generator().manual_seed(1)
    lengths = [setting.prompt - 3 * row for row in range(setting.batch)]
    return [torch.randint(0, setting.vocabulary - 2, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def plain_sample(denoiser: dllm.Denoiser, prompts: list[list[int]], setting: Setting) -> tuple[torch.Tensor, int]:
    """Low-confidence remasking, one token a step, as the published algorithm writes it down: every step takes the
    logits, the softmax and the confidence of the whole canvas (LLaDA, arXiv 2502.09992, algorithm 5)."""
    mask, rows = denoiser.mask_token_id, 0
    width = max(map(len, prompts)) + setting.new_tokens
    canvas = torch.full((len(prompts), width), denoiser.pad_token_id)  # (B, L)
    attention = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        canvas[row, : len(prompt)] = torch.tensor(prompt)
        canvas[row, len(prompt) : len(prompt) + setting.new_tokens] = mask
        attention[row, : len(prompt) + setting.new_tokens] = True
    for block in range(math.ceil(setting.new_tokens / setting.block)):
        for _ in range(setting.block):
            logits = denoiser.model(input_ids=canvas, attention_mask=attention).logits  # (B, L, V)
            rows += logits.shape[0] * logits.shape[1]
            logits[..., mask] = -torch.inf
            tokens = logits.argmax(-1)
            confidence = logits.softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)  # (B, L)
            confidence = torch.where(canvas == mask, confidence, -torch.inf)
            for row, prompt in enumerate(prompts):
                confidence[row, len(prompt) + (block + 1) * setting.block :] = -torch.inf
                best = confidence[row].topk(1).indices
                canvas[row, best] = tokens[row, best]
    return canvas, rows


def compare(setting: Setting, repeats: int) -> Result:
    """Alternate the two, after one run of each to warm up."""
    denoiser, prompts = build(setting), prompts_of(setting)
    options = {"max_new_tokens": setting.new_tokens, "block_size": setting.block, "stop_at_eos": False}
    sampler = dllm.sampler("mdlm", denoiser, **options)
    want, plain_rows = plain_sample(denoiser, prompts, setting)
    got = sampler.sample(prompts)
    ends = got.lengths.tolist()
    identical = all(torch.equal(got.sequences[i, :n], want[i, :n]) for i, n in enumerate(ends))
    plain, ours = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        plain_sample(denoiser, prompts, setting)
        middle = time.perf_counter()
        sampler.sample(prompts)
        plain.append(middle - start)
        ours.append(time.perf_counter() - middle)
    ratio = statistics.median(p / o for p, o in zip(plain, ours, strict=True))
    return Result(setting, plain, ours, ratio, identical, plain_rows, got.stats.logit_rows)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = []
    print(f"{'vocabulary':>10} {'batch':>5} {'plain s':>9} {'ours s':>9} {'ratio':>6} {'head rows':>16}  identical")
    for vocabulary in (8_192, 126_464):
        for batch in (1, 8):
            r = compare(Setting(vocabulary, batch), args.repeats)
            results.append(r)
            plain, ours = statistics.median(r.plain_seconds), statistics.median(r.ours_seconds)
            rows = f"{r.plain_logit_rows} -> {r.ours_logit_rows}"
            times = f"{plain:>9.3f} {ours:>9.3f} {r.ratio_median:>6.2f}"
            print(f"{vocabulary:>10} {batch:>5} {times} {rows:>16}  {r.identical}")
    if args.output:
        text = json.dumps({"machine": machine(), "results": [asdict(r) for r in results]}, indent=2)
        partial = args.output.with_suffix(".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(args.output)


if __name__ == "__main__":
    main()
