"""Learning on real text: masked and block diffusion at character level, one size of model, one number of steps.

python benchmarks/learning.py TEXTFILE [--blocks 0 16 4] [--steps 2000] [--output benchmarks/results/learning-cpu.json]

Block size 0 is masked diffusion (`mdlm`), others are `bd3lm`. The last tenth of the text is held out; of it the script
reports the bound on the negative log-likelihood per character, averaged over many draws of stratified noise so that its
standard error is far below the differences.

Shapes: B sequences, L characters of a sequence.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset

import dllm_core as dllm
from dllm_core import registry
from dllm_core.plugins import import_string

LENGTH, BATCH = 64, 48
WIDTH, LAYERS, HEADS = 128, 4, 4
LEARNING_RATE, WARMUP = 2e-3, 0.05
HELD_OUT = 0.1
EVALUATED = 384  # held-out sequences
DRAWS = 32  # of the noise, for each of them


class Crops(Dataset):
    """Random stretches of a text, the same for the same seed. An example has ``input_ids`` (L,)."""

    def __init__(self, text: torch.Tensor, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.text = text
        self.starts = torch.randint(len(text) - LENGTH, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        start = int(self.starts[number])
        return {"input_ids": self.text[start : start + LENGTH]}


def read(file: Path) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Training and held-out characters as ids, and how many there are to choose from."""
    text = file.read_text(encoding="utf-8")
    alphabet = {letter: number for number, letter in enumerate(sorted(set(text)))}
    ids = torch.tensor([alphabet[letter] for letter in text])
    cut = int(len(ids) * (1 - HELD_OUT))
    return ids[:cut], ids[cut:], len(alphabet)


def fresh_denoiser(letters: int) -> dllm.Denoiser:
    """A small converted Llama with random weights; the mask token comes behind the letters."""
    adapter = registry.load("adapter", "a2d-llama")()
    config = import_string(adapter.config_class)(
        vocab_size=letters + 1,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = adapter.build_model(config)
    return dllm.Denoiser(model, adapter, special_ids={"mask": letters, "pad": letters})


def train(denoiser: dllm.Denoiser, text: torch.Tensor, block: int, steps: int) -> float:
    """Train in place; seconds."""
    config = dllm.MDLMConfig if block == 0 else dllm.BD3LMConfig
    trainer = dllm.MDLMTrainer if block == 0 else dllm.BD3LMTrainer
    with tempfile.TemporaryDirectory() as folder:
        args = config(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            warmup_steps=WARMUP,
            lr_scheduler_type="cosine",
            weight_decay=0.01,
            logging_steps=max(1, steps // 10),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            weighting="uniform",  # less variance than the bound's own weights; what is measured is the bound
            **({} if block == 0 else {"block_size": block, "low_discrepancy": True}),
        )
        run = trainer(denoiser, args, train_dataset=Crops(text, steps * BATCH, seed=0))
        began = time.perf_counter()
        run.train()
    return time.perf_counter() - began


@torch.no_grad()
def held_out_bound(denoiser: dllm.Denoiser, text: torch.Tensor, block: int) -> tuple[float, float]:
    """Nats per character on the held-out text, and the standard error of its noise.

    Both objectives are measured alike: times spread evenly over the sequences and blocks of a draw.
    """
    # Masked diffusion is block diffusion with one block; its model however attends to no clean half.
    objective = dllm.objective("bd3lm", block_size=block or LENGTH, low_discrepancy=True, time_epsilon=1e-3)
    scored = objective if block else dllm.objective("mdlm")
    rows = text[: EVALUATED * LENGTH].view(EVALUATED, LENGTH)
    denoiser.model.eval()
    bounds = []
    for draw in range(DRAWS):
        total = 0.0
        for number, part in enumerate(rows.split(BATCH)):
            generator = torch.Generator().manual_seed(1000 * draw + number)
            batch = {"input_ids": part}
            corruption = objective.corrupt(batch, denoiser, generator=generator)
            total += float(scored.loss(denoiser, batch, corruption).nll_sum)
        bounds.append(total / rows.numel())
    bounds = torch.tensor(bounds)
    return float(bounds.mean()), float(bounds.std() / math.sqrt(DRAWS))


def measure(text: torch.Tensor, held_out: torch.Tensor, letters: int, block: int, steps: int) -> dict[str, object]:
    """Train one model and measure it."""
    denoiser = fresh_denoiser(letters)
    seconds = train(denoiser, text, block, steps)
    nats, error = held_out_bound(denoiser, held_out, block)
    return {
        "objective": "bd3lm" if block else "mdlm",
        "block_size": block or None,
        "steps": steps,
        "nats_per_character": round(nats, 4),
        "standard_error": round(error, 4),
        "bits_per_character": round(nats / math.log(2), 4),
        "training_seconds": round(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 16, 4])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/learning-cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    text, held_out, letters = read(options.text)
    known = json.loads(options.output.read_text()) if options.output.exists() else {"runs": []}
    known |= {
        "machine": f"{platform.machine()}, torch {torch.__version__}, {options.threads} thread(s)",
        "model": f"Llama, {LAYERS} layers, width {WIDTH}, {letters + 1} tokens",
        "data": f"sequences of {LENGTH}, batches of {BATCH}",
    }
    for block in options.blocks:
        run = measure(text, held_out, letters, block, options.steps)
        print(run, flush=True)
        same = (run["block_size"], run["steps"])
        known["runs"] = [old for old in known["runs"] if (old["block_size"], old["steps"]) != same] + [run]
        options.output.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
