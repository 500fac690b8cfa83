"""What each process of these tests runs: a few steps of a trainer on one engine, with noise that depends on rows alone.

Called as ``steps.py FOLDER ENGINE OBJECTIVE...``; process 0 writes ``FOLDER/ENGINE.json``: the loss of every step (the
mean over processes, which is that of the whole batch), and what the run was in truth.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dllm_core.models.adapter import ModelAdapter
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.lora import LoraSection, add_lora, quantization
from dllm_core.noise import apply_mask
from dllm_core.objectives.base import maskable_positions
from dllm_core.objectives.mdlm import MDLMObjective
from dllm_core.training import DiffusionArguments, DiffusionCollator, DiffusionTrainer
from dllm_core.training.launch import WorkerEnd, engine_arguments

STEPS, BATCH, VOCAB, LENGTH = 10, 8, 32, 16
IDS = {"mask": VOCAB - 1, "eos": 1, "pad": 0}


class LlamaAdapter(ModelAdapter):
    """A family from transformers, made bidirectional."""

    model_types = ("llama",)
    config_class = "transformers:LlamaConfig"
    model_class = "transformers:LlamaForCausalLM"
    supports_block_causal = True
    lora_targets = ("q_proj", "up_proj")


def fresh_denoiser(**fields) -> Denoiser:
    config = LlamaConfig(
        **{
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": VOCAB,
            "max_position_embeddings": 2 * LENGTH,
            "is_causal": False,
            "use_cache": False,
            "initializer_range": 0.2,
            **fields,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Denoiser(LlamaForCausalLM(config), LlamaAdapter(), special_ids=IDS)


def examples(count: int) -> list[dict[str, list[int]]]:
    """Ragged ones in whole blocks of 4, the first part of each context only; a few come again and can be learned."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for _ in range(2 * BATCH):
        length = int(torch.randint(LENGTH // 2, LENGTH + 1, (), generator=generator)) // 4 * 4
        ids = torch.randint(2, VOCAB - 1, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 4) + ids[length // 4 :]})
    return [rows[number % len(rows)] for number in range(count)]


def noise_of_the_row(batch, denoiser):
    """Noise that depends on the row alone, so that it is the same whichever process has the row."""
    ids = batch["input_ids"]
    places = torch.arange(ids.shape[1], device=ids.device)
    time = (0.2 + 0.1 * (ids[:, :3].sum(1) % 7)).float()
    masked = ((ids * 7 + places * 3 + ids[:, :1]) % 3 == 0) & maskable_positions(batch)
    return apply_mask(ids, masked, denoiser.mask_token_id, time)


class RowMDLM(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator):
        return noise_of_the_row(batch, denoiser)


def objective_named(name: str):
    if name == "bd3lm":
        from dllm_core.objectives.bd3lm import BD3LMObjective

        class RowBD3LM(BD3LMObjective):
            def corrupt(self, batch, denoiser, *, generator):
                return noise_of_the_row(batch, denoiser)

        return RowBD3LM(block_size=4)
    return RowMDLM()


class Recording(DiffusionTrainer):
    """Keeps the loss of every step as it is, not rounded for a log."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.parts.append(self.accelerator.reduce(loss.detach().clone(), "mean").item())
        return loss


def in_4_bits(denoiser: Denoiser, folder: Path, device: torch.device) -> Denoiser:
    """The same model as a recipe with ``load_in_4bit`` gets it; the run of one process, the first, saves it."""
    if not folder.exists():
        denoiser.model.save_pretrained(folder)
    family, config = denoiser.adapter, denoiser.model.config
    quantized = quantization(device, torch.float32)
    model = family.load_model(str(folder), config, dtype=torch.float32, quantization=quantized)
    return Denoiser(model, family, special_ids=IDS)


def run(folder: Path, engine: str, name: str) -> dict[str, object]:
    """Train one of ``mdlm``, ``mdlm-accumulated`` (two micro-batches a step), ``bd3lm``, ``lora``, ``qlora``."""
    accumulation = 2 if name == "mdlm-accumulated" else 1
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = DiffusionArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH // processes // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.003,
        lr_scheduler_type="constant",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        train_sampling_strategy="sequential",
        **engine_arguments(engine),
    )
    denoiser = fresh_denoiser(hidden_size=64, intermediate_size=128) if name == "qlora" else fresh_denoiser()
    if name == "qlora":
        denoiser = in_4_bits(denoiser, folder / "base", args.device)
    if name in ("lora", "qlora"):
        denoiser = add_lora(denoiser, LoraSection(r=4, alpha=8), base="nowhere")
    trainer = Recording(
        denoiser,
        args,
        objective=objective_named(name),
        train_dataset=examples(STEPS * BATCH),
        data_collator=DiffusionCollator(pad_token_id=IDS["pad"], pad_to_multiple_of=4),  # blocks of bd3lm
    )
    trainer.parts = []
    trainer.train()
    trainer.save_model(str(folder / f"{engine}-{name}"))
    losses = torch.tensor(trainer.parts).view(STEPS, accumulation).sum(1)
    return {
        "losses": losses.tolist(),
        "type": trainer.accelerator.distributed_type.value,
        "processes": trainer.accelerator.num_processes,
        "stage": trainer.accelerator.deepspeed_plugin.zero_stage if args.deepspeed else None,
    }


if __name__ == "__main__":
    end = WorkerEnd()
    torch.set_num_threads(1)
    folder, engine = Path(sys.argv[1]), sys.argv[2]
    results = {name: run(folder, engine, name) for name in sys.argv[3:]}
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        (folder / f"{engine}.json").write_text(json.dumps(results))
    end.with_code(0)
