"""LoRA on a converted model: does instruction tuning lower the loss of instructions that it has not seen?

Four steps, each as a user would take it: a small Llama is trained as a causal language model on the text of the
instructions, `dllm convert` makes a masked diffusion model of it, `dllm train` tunes it with a recipe's section lora
(and, to compare, all of its weights), `dllm merge` merges the adapter. Every tenth row is held out from all of it. The
figure is the bound on the negative log-likelihood in nats per token of the responses, with the same noise each time.

The data are JSON lines with ``prompt`` and ``completion`` (octopack's OASST files), or self-instruct's seed tasks.

usage: python benchmarks/lora_sft.py DATA.jsonl [MORE.jsonl] --work FOLDER [--output benchmarks/results/lora-sft.json]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import dllm_core as dllm
from dllm_core.models.converting import convert_checkpoint
from dllm_core.models.merging import merge_checkpoint
from dllm_core.training.recipes import Recipe, parse_recipe
from dllm_core.training.run import train

VOCABULARY, PROMPT, LENGTH = 2048, 48, 128  # tokens: in all, kept of a prompt, kept of a row
HELD_OUT = 10  # every tenth row
DRAWS = 8  # of noise for each held-out row
EOS, PAD = "<eos>", "<pad>"


def read_rows(files: list[Path]) -> list[tuple[str, str]]:
    """Pairs of prompt and response."""
    rows = []
    for record in (json.loads(line) for file in files for line in file.open(encoding="utf-8")):
        if "completion" in record:
            rows.append((record["prompt"], record["completion"]))
        else:
            for instance in record["instances"]:
                rows.append(("\n".join(filter(None, (record["instruction"], instance["input"]))), instance["output"]))
    return list(dict.fromkeys(rows))


def train_tokenizer(rows: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator((text for row in rows for text in row), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=PAD)


def encode(rows: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> list[dict[str, list[int]]]:
    """Prompt as context, response and its end to learn; cut to `LENGTH` tokens."""
    examples = []
    for prompt, response in rows:
        asked = tokenizer(f"Question: {prompt}")["input_ids"][:PROMPT] + tokenizer("\nAnswer: ")["input_ids"]
        told = [*tokenizer(response)["input_ids"], tokenizer.eos_token_id][: LENGTH - len(asked)]
        examples.append({"input_ids": asked + told, "labels": [-100] * len(asked) + told})
    return examples


def train_causal(
    examples: list[dict[str, list[int]]], tokenizer: PreTrainedTokenizerFast, steps: int
) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step, rows in zip(range(steps), batches(examples), strict=False):
        loss = causal_loss(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"causal step {step}: {loss.item():.3f}", flush=True)
    return model.eval()


def batches(examples: list[dict[str, list[int]]], size: int = 16) -> Iterator[list[dict[str, list[int]]]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        yield from ([examples[i] for i in order[at : at + size]] for at in range(0, len(order) - size + 1, size))


def causal_loss(model: LlamaForCausalLM, rows: list[dict[str, list[int]]], *, key: str = "input_ids") -> torch.Tensor:
    """Mean over the tokens of ``key``: of everything, or with ``labels`` of the responses."""
    stack = lambda name, filler: torch.nn.utils.rnn.pad_sequence(  # noqa: E731
        [torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=filler
    )
    return model(input_ids=stack("input_ids", 0), labels=stack(key, -100)).loss


def causal_nll(model: LlamaForCausalLM, examples: list[dict[str, list[int]]]) -> float:
    """Exact, per token of the responses."""
    total = tokens = 0.0
    with torch.no_grad():
        for example in examples:
            count = sum(label != -100 for label in example["labels"])
            total += causal_loss(model, [example], key="labels").item() * count
            tokens += count
    return total / tokens


def unigram_nll(learned: list[dict[str, list[int]]], held_out: list[dict[str, list[int]]]) -> float:
    """What knowing nothing but how often each token occurs in responses comes to."""
    counts = Counter(label for row in learned for label in row["labels"] if label != -100)
    whole = sum(counts.values()) + VOCABULARY
    labels = [label for row in held_out for label in row["labels"] if label != -100]
    return -sum(math.log((counts[label] + 1) / whole) for label in labels) / len(labels)


def recipe_of(base: Path, work: Path, steps: int, lora: dict[str, object] | None, rate: float) -> Recipe:
    """The recipe of one tuning, with an adapter or of all weights."""
    training = {
        "max_steps": steps,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "learning_rate": rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_grad_norm": 1.0,
        "use_cpu": True,
        "logging_steps": 50,
        "save_steps": steps,
        "eval_strategy": "steps",
        "eval_steps": steps // 5,
        "eval_on_start": True,
        "train_sampling_strategy": "group_by_length",
    }
    held_out = work / "held_out.jsonl"
    data = {
        "train_file": str(work / "train.jsonl"),
        "eval_file": str(held_out),
        "eval_count": sum(1 for _ in held_out.open()),
    }
    sections = {"model": {"checkpoint": str(base)}, "data": data, "objective": {"name": "mdlm"}}
    return parse_recipe(sections | {"lora": lora, "training": training})


def tune(
    base: Path, work: Path, name: str, steps: int, *, lora: dict[str, object] | None, rate: float
) -> dict[str, object]:
    """Train with a recipe; the held-out bound before the first step and after the last."""
    started = time.perf_counter()
    train(recipe_of(base, work, steps, lora, rate), work / name)
    state = json.loads((work / name / "checkpoints" / f"checkpoint-{steps}" / "trainer_state.json").read_text())
    curve = {entry["step"]: round(entry["eval_nll"], 4) for entry in state["log_history"] if "eval_nll" in entry}
    denoiser = dllm.load(base, device="cpu", **({"lora": work / name} if lora else {}))
    trained = sum(p.numel() for n, p in denoiser.model.named_parameters() if lora is None or "lora_" in n)
    return {
        "lora": lora,
        "learning_rate": rate,
        "steps": steps,
        "trained_weights": trained,
        "held_out_nll": curve,
        "seconds": round(time.perf_counter() - started),
    }


def merged_difference(base: Path, adapter: Path, output: Path) -> float:
    """Largest difference of a logit between the base with its adapter and the merged model."""
    merge_checkpoint(base, adapter, output)
    together, merged = dllm.load(base, lora=adapter, device="cpu"), dllm.load(output, device="cpu")
    ids = torch.randint(2, VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(0))
    ids[:, ::2] = merged.mask_token_id
    with torch.no_grad():
        return (together.logits(ids) - merged.logits(ids)).abs().max().item()


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def prepare(files: list[Path], work: Path) -> tuple[list, list, object]:
    """Examples to learn and to hold out, written for the recipes, and the tokenizer made for them."""
    rows = read_rows(files)
    learned, held = [row for i, row in enumerate(rows) if i % HELD_OUT], rows[::HELD_OUT]
    tokenizer = train_tokenizer(learned)
    learned, held_out = encode(learned, tokenizer), encode(held, tokenizer)
    for name, examples in (("train", learned), ("held_out", held_out * DRAWS)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    return learned, held_out, tokenizer


def measure(files: list[Path], work: Path, causal_steps: int, steps: int) -> dict[str, object]:
    """Train a causal model, convert it, tune it in two ways, and merge."""
    learned, held_out, tokenizer = prepare(files, work)
    causal = train_causal(learned, tokenizer, causal_steps)
    causal.save_pretrained(work / "causal")
    tokenizer.save_pretrained(work / "causal")
    converted = work / "converted"
    convert_checkpoint(work / "causal", converted, to="a2d")
    return {
        "machine": machine(),
        "data": {
            "files": [file.name for file in files],
            "rows": len(learned),
            "held_out_rows": len(held_out),
            "held_out_tokens": sum(label != -100 for row in held_out for label in row["labels"]),
            "noise_draws": DRAWS,
        },
        "unigram_nll": round(unigram_nll(learned, held_out), 4),
        "causal_nll": round(causal_nll(causal, held_out), 4),
        "causal_steps": causal_steps,
        "lora": tune(converted, work, "lora", steps, lora={"r": 16, "alpha": 32}, rate=3e-3),
        "full": tune(converted, work, "full", steps, lora=None, rate=1e-3),
        "merged_largest_difference": merged_difference(converted, work / "lora", work / "merged"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True, help="Folder for models; must not exist.")
    parser.add_argument("--causal-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True)
    text = json.dumps(measure(options.data, options.work, options.causal_steps, options.steps), indent=2) + "\n"
    print(text)
    if options.output is not None:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
