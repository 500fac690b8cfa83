"""`train`: from a recipe to a folder that `dllm.load` reads."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from transformers import AutoTokenizer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from dllm_core import registry
from dllm_core.config import from_mapping
from dllm_core.data.folder import is_prepared, prepared_options
from dllm_core.data.grammar import parse_spec
from dllm_core.errors import OptionError
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.loading import load, pick_dtype, resolve_path
from dllm_core.models.lora import add_lora
from dllm_core.objectives import objective
from dllm_core.plugins import import_string
from dllm_core.training import checkpoints
from dllm_core.training.arguments import DiffusionArguments
from dllm_core.training.collator import DiffusionCollator
from dllm_core.training.examples import (
    StreamedExamples,
    dataset_examples,
    evaluation_examples,
    training_examples,
)
from dllm_core.training.interruption import TrainingInterrupted, saving_on_signals
from dllm_core.training.packing import PackingCollator
from dllm_core.training.progress import only_one_display, progress_display, show_configuration
from dllm_core.training.recipes import DataSection, ModelSection, Recipe, TokenizerSection, load_recipe
from dllm_core.training.resume import CHECKPOINTS, RECIPE_FILE, changes, starting_point
from dllm_core.training.trainer import DiffusionTrainer
from dllm_core.training.wrappers import Collator
from dllm_core.training.wrapping import check_wrappers, wrap, wrapped_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dllm_core.objectives.base import Objective


def train(recipe: Recipe, output: str | Path, *, resume: bool = False) -> Path:
    """Train as the recipe says and return the output folder: model, tokenizer, and the resolved recipe beside them.

    Args:
        output: created; checkpoints to resume from go to its folder ``checkpoints``.
        resume: go on from the newest whole checkpoint there, or start anew where there is none. A training that is
            finished is left as it is.

    Raises:
        OptionError: the recipe does not fit together, the folder holds a training already, or one of another recipe.
        DataError: the data teach nothing, or do not fit the model.
        TrainingInterrupted: SIGTERM or SIGINT came; a checkpoint was written.
    """
    output = Path(output)
    newest = starting_point(recipe, output, resume=resume)
    args = training_arguments(recipe, output)
    finished = checkpoints.finished_at(output, {name: getattr(args, name) for name in checkpoints.LENGTHS})
    if finished is not None:
        _say(args, f"{output} is finished: trained to step {finished}; raise training.max_steps to train on")
        return output
    trainer = build_trainer(recipe, output)
    if args.process_index == 0:
        show_configuration(recipe, trainer)
        _say_how_it_starts(recipe, output, newest)
        output.mkdir(parents=True, exist_ok=True)
        checkpoints.write_text(output / RECIPE_FILE, recipe.as_yaml())
    with only_one_display():
        _train(trainer, output, newest)
        checkpoints.publish(trainer, output)
    return output


def _train(trainer: DiffusionTrainer, output: Path, newest: Path | None) -> None:
    display = progress_display()
    trainer.add_callback(display)
    with saving_on_signals(trainer) as signals:
        try:
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
        finally:
            display.close()
    if signals.agreed:
        state = trainer.state
        raise TrainingInterrupted(
            f"{signal.Signals(signals.agreed).name} stopped the training at step {state.global_step} of "
            f"{state.max_steps}; saved in {output / CHECKPOINTS}; go on with the same command and --resume",
            signals.agreed,
        )


def _say_how_it_starts(recipe: Recipe, output: Path, newest: Path | None) -> None:
    if newest is None:
        return
    print(f"resuming from {newest}", file=sys.stderr, flush=True)
    before = output / RECIPE_FILE
    for name, there, here in changes(load_recipe(before), recipe) if before.is_file() else ():
        print(f"with {name} {here!r} where it was {there!r}", file=sys.stderr, flush=True)


def _say(args: DiffusionArguments, text: str) -> None:
    if args.process_index == 0:
        print(text, file=sys.stderr, flush=True)


def check_recipe(recipe: Recipe, *, elsewhere: bool = False) -> None:
    """Raise what training would, as far as that shows without weights, data or network.

    Args:
        elsewhere: it is going to train on another machine: what GPU and which folders this one has says nothing.

    Raises:
        UnknownComponentError, OptionError: no such objective or family, an unknown option or training argument.
        ModelLoadError: a checkpoint that is no folder, no bundled one and no hub id.
        ComponentLoadError: an import string that leads nowhere.
    """
    there = {"use_cpu": True, "fp16": False} if elsewhere else {}
    training_arguments(replace(recipe, training={**recipe.training, **there}), Path())
    _objective(recipe)
    check_wrappers(recipe.data.collators)
    if recipe.data.dataset is not None and not elsewhere and not is_prepared(Path(recipe.data.dataset).expanduser()):
        parse_spec(recipe.data.dataset)
    for target in (recipe.tokenizer.builder, recipe.data.generator):
        if target is not None:
            import_string(target)
    if recipe.model.checkpoint is not None and not elsewhere:
        resolve_path(recipe.model.checkpoint)
    elif recipe.model.adapter is not None:
        registry.load("adapter", recipe.model.adapter)


def build_trainer(recipe: Recipe, output: Path) -> DiffusionTrainer:
    """The trainer that a recipe describes, with its model, data and objective."""
    args = training_arguments(recipe, output)
    denoiser = build_denoiser(recipe.model, recipe.tokenizer, seed=args.seed, device=args.device)
    if recipe.lora is not None:
        denoiser = add_lora(denoiser, recipe.lora, base=recipe.model.checkpoint, seed=args.seed)
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    needed = args.max_steps * step if args.max_steps > 0 else None
    learned, evaluated = _examples(recipe.data, denoiser, args, needed)
    if evaluated is None and args.eval_strategy != "no":
        raise OptionError(
            f"training.eval_strategy={args.eval_strategy.value!r} needs examples to evaluate on; set data.eval_count, "
            "or training.eval_strategy=no"
        )
    trainer = DiffusionTrainer(
        denoiser,
        args,
        objective=_objective(recipe),
        train_dataset=learned,
        eval_dataset=evaluated,
        data_collator=build_collator(recipe.data, denoiser),
    )
    # Hugging Face's own displays print to stdout, which belongs to what the caller reports.
    for display in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(display)
    return trainer


def _examples(data: DataSection, denoiser: Denoiser, args: DiffusionArguments, needed: int | None) -> tuple:
    """What to train on, and what to evaluate on or None; `needed` examples are trained on, None: not known."""
    if data.dataset is None:
        evaluated = evaluation_examples(data, tokenizer=denoiser.tokenizer)
        learned = training_examples(data, tokenizer=denoiser.tokenizer, batch_size=args.train_batch_size, needed=needed)
        return learned, evaluated
    if data.streaming and needed is None:
        raise OptionError("section data: a stream has no end; set training.max_steps")
    prepared = dataset_examples(data, tokenizer=denoiser.tokenizer, context_length=denoiser.context_length)
    if args.process_index == 0 and prepared.report.counts and not data.streaming:
        Console(stderr=True).print(prepared.report.table())
    learned = StreamedExamples(prepared.train, args.train_batch_size) if data.streaming else prepared.train
    return learned, prepared.eval


def build_collator(data: DataSection, denoiser: Denoiser) -> Collator:
    """What makes batches: padding or packing, inside the wrappers that the recipe lists.

    Raises:
        OptionError: no such wrapper or option, or a token that the model has not.
    """
    if data.packing:
        longest = data.data_options(min(1024, denoiser.context_length or 1024)).max_length
        folder = Path(data.dataset).expanduser() if data.dataset else None
        if folder is not None and data.max_length is None and is_prepared(folder):
            longest = prepared_options(folder).max_length
        collator = PackingCollator(
            pad_token_id=denoiser.pad_token_id, max_length=wrapped_length(longest, data.collators)
        )
    else:
        collator = DiffusionCollator(
            pad_token_id=denoiser.pad_token_id,
            learn_padding=data.learn_padding,
            pad_to_multiple_of=data.pad_to_multiple_of,
        )
    return wrap(collator, data.collators, denoiser)


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
    if model.checkpoint is None:
        return _fresh_denoiser(model, tokenizer, seed)
    # On the CPU: the trainer moves the model to the device of its process, except for quantised weights.
    return load(
        model.checkpoint,
        device=device if model.load_in_4bit else "cpu",
        dtype=model.dtype,
        tokenizer=_tokenizer(tokenizer, AutoTokenizer.from_pretrained),
        attn_implementation=model.attn_implementation,
        load_in_4bit=model.load_in_4bit,
    )


def _fresh_denoiser(section: ModelSection, chosen: TokenizerSection, seed: int) -> Denoiser:
    adapter = registry.load("adapter", section.adapter)()
    tokenizer = _tokenizer(chosen, adapter.load_tokenizer)
    if tokenizer is None:
        raise OptionError("fresh weights need a tokenizer; name its builder or path in section tokenizer")
    config = import_string(adapter.config_class)(**section.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = adapter.build_model(config)
    if section.attn_implementation is not None:
        model.set_attn_implementation(section.attn_implementation)
    return Denoiser(model.to(pick_dtype(section.dtype)), adapter, adapter.prepare_tokenizer(tokenizer))


def _tokenizer(
    section: TokenizerSection, read: Callable[[str], PreTrainedTokenizerBase | None]
) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a recipe; `read` loads one from a path. A family knows how to read its own."""
    if section.builder is not None:
        return import_string(section.builder)()
    if section.path is None:
        return None
    try:
        tokenizer = read(section.path)
    except (OSError, ValueError) as error:
        raise OptionError(f"no tokenizer at {section.path!r}: {str(error).strip().splitlines()[0]}") from error
    if tokenizer is None:
        raise OptionError(f"no tokenizer at {section.path!r}: the folder has no file of one")
    return tokenizer
