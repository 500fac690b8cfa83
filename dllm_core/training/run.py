"""`train`: from a recipe to a folder that `dllm.load` reads."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from dllm_core import registry
from dllm_core.config import from_mapping
from dllm_core.errors import OptionError
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.loading import load, pick_dtype
from dllm_core.models.lora import add_lora, check_same_adapter
from dllm_core.objectives import objective
from dllm_core.plugins import import_string
from dllm_core.training.arguments import DiffusionArguments
from dllm_core.training.collator import DiffusionCollator
from dllm_core.training.examples import evaluation_examples, training_examples
from dllm_core.training.recipes import ModelSection, Recipe, TokenizerSection
from dllm_core.training.trainer import DiffusionTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState

    from dllm_core.objectives.base import Objective

RECIPE_FILE = "recipe.yaml"
CHECKPOINTS = "checkpoints"  # folder of the steps to resume from, inside the output folder
_STAGING = ".saving"


def train(recipe: Recipe, output: str | Path, *, resume: bool = False) -> Path:
    """Train as the recipe says and return the output folder: model, tokenizer, and the resolved recipe beside them.

    Args:
        output: created; checkpoints to resume from go to its folder ``checkpoints``.
        resume: go on from the newest whole checkpoint there, or start anew where there is none.

    Raises:
        OptionError: the recipe does not fit together, or the folder holds a model already.
    """
    output = Path(output)
    if not resume and (output / "config.json").exists():
        raise OptionError(f"{str(output)!r} holds a model already; name another folder, or resume that training")
    trainer = build_trainer(recipe, output)
    if trainer.is_world_process_zero():
        output.mkdir(parents=True, exist_ok=True)
        (output / RECIPE_FILE).write_text(recipe.as_yaml(), encoding="utf-8")
    newest = newest_checkpoint(output / CHECKPOINTS) if resume else None
    if newest is not None:
        check_same_adapter(trainer.denoiser, newest)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    publish(trainer, output)
    return output


def check_recipe(recipe: Recipe) -> None:
    """Raise what training would, as far as that shows without a model or data.

    Raises:
        UnknownComponentError, OptionError: no such objective or family, an unknown option or training argument.
    """
    training_arguments(recipe, Path())
    _objective(recipe)
    if recipe.model.adapter is not None:
        registry.find("adapter", recipe.model.adapter)


def build_trainer(recipe: Recipe, output: Path) -> DiffusionTrainer:
    """The trainer that a recipe describes, with its model, data and objective."""
    args = training_arguments(recipe, output)
    denoiser = build_denoiser(recipe.model, recipe.tokenizer, seed=args.seed, device=args.device)
    if recipe.lora is not None:
        denoiser = add_lora(denoiser, recipe.lora, base=recipe.model.checkpoint, seed=args.seed)
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    trainer = DiffusionTrainer(
        denoiser,
        args,
        objective=_objective(recipe),
        train_dataset=training_examples(
            recipe.data,
            tokenizer=denoiser.tokenizer,
            batch_size=args.train_batch_size,
            needed=args.max_steps * step if args.max_steps > 0 else None,
        ),
        eval_dataset=evaluation_examples(recipe.data, tokenizer=denoiser.tokenizer),
        data_collator=DiffusionCollator(
            pad_token_id=denoiser.pad_token_id,
            learn_padding=recipe.data.learn_padding,
            pad_to_multiple_of=recipe.data.pad_to_multiple_of,
        ),
    )
    # Hugging Face's own displays print to stdout, which belongs to what the caller reports.
    for display in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(display)
    trainer.add_callback(ProgressLines())
    return trainer


def training_arguments(recipe: Recipe, output: Path) -> DiffusionArguments:
    """The section ``training`` as arguments.

    Raises:
        OptionError: an unknown key, a wrong type, or a combination that Hugging Face refuses.
    """
    # YAML reads the strategy `no` as false.
    chosen = {
        name: "no" if value is False and name.endswith("_strategy") else value
        for name, value in recipe.training.items()
    }
    settings = {"report_to": [], **chosen, "output_dir": str(output / CHECKPOINTS)}
    try:
        return from_mapping(DiffusionArguments, settings, what="section training")
    except (ValueError, ImportError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"section training: {' '.join(str(error).split())}") from error


def _objective(recipe: Recipe) -> Objective:
    options = dict(recipe.objective)
    return objective(str(options.pop("name")), **options)


def build_denoiser(
    model: ModelSection, tokenizer: TokenizerSection, *, seed: int, device: torch.device | str = "cpu"
) -> Denoiser:
    """The model to train: a checkpoint, or fresh weights drawn from `seed`; `device` is where 4-bit weights go."""
    own = _tokenizer(tokenizer)
    if model.checkpoint is None:
        return _fresh_denoiser(model, own, seed)
    # On the CPU: the trainer moves the model to the device of its process, except for quantised weights.
    return load(
        model.checkpoint,
        device=device if model.load_in_4bit else "cpu",
        dtype=model.dtype,
        tokenizer=own,
        attn_implementation=model.attn_implementation,
        load_in_4bit=model.load_in_4bit,
    )


def _fresh_denoiser(section: ModelSection, tokenizer: PreTrainedTokenizerBase | None, seed: int) -> Denoiser:
    if tokenizer is None:
        raise OptionError("fresh weights need a tokenizer; name its builder or path in section tokenizer")
    adapter = registry.load("adapter", section.adapter)()
    config = import_string(adapter.config_class)(**section.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = adapter.build_model(config)
    if section.attn_implementation is not None:
        model.set_attn_implementation(section.attn_implementation)
    return Denoiser(model.to(pick_dtype(section.dtype)), adapter, adapter.prepare_tokenizer(tokenizer))


def _tokenizer(section: TokenizerSection) -> PreTrainedTokenizerBase | None:
    if section.builder is not None:
        return import_string(section.builder)()
    if section.path is None:
        return None
    try:
        return AutoTokenizer.from_pretrained(section.path)
    except (OSError, ValueError) as error:
        raise OptionError(f"no tokenizer at {section.path!r}: {str(error).strip().splitlines()[0]}") from error


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step that was written to its end; None where there is none."""
    whole = [entry for entry in folder.glob("checkpoint-*") if _is_whole(entry)]
    return max(whole, key=lambda entry: int(entry.name.rpartition("-")[2]), default=None)


def _is_whole(checkpoint: Path) -> bool:
    """The trainer's state is the last file that Hugging Face writes, so a readable one means that all is there."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def publish(trainer: DiffusionTrainer, output: Path) -> None:
    """Save model and tokenizer so that the folder is a checkpoint only once it is whole.

    Everything is written to one side and moved in, ``config.json`` last: without it a folder is no checkpoint.
    """
    staging = output / _STAGING
    if trainer.is_world_process_zero():
        shutil.rmtree(staging, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(staging))
    if not trainer.is_world_process_zero():
        return
    (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says the same
    (output / "config.json").unlink(missing_ok=True)
    shutil.copymode(staging / "config.json", staging / "model.safetensors")  # safetensors keeps it to its owner
    for file in sorted(staging.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, output / file.name)
    staging.rmdir()


class ProgressLines(TrainerCallback):
    """One line on stderr whenever the trainer logs."""

    def on_log(
        self,
        args: DiffusionArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        shown = "  ".join(f"{name} {_number(value)}" for name, value in logs.items() if not name.endswith("epoch"))
        print(f"step {state.global_step}/{state.max_steps}  {shown}", file=sys.stderr, flush=True)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
