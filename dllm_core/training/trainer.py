"""`DiffusionTrainer`: the Hugging Face Trainer with a diffusion objective.

Four things differ from a language model's training, and the first three go wrong silently when left to the base class:

- The loss is divided by what the *whole optimizer step* teaches, over all micro-batches and processes. The base class
  counts ``labels[..., 1:]`` for causal models, and leaves the division to a model that never sees the labels here.
- Noise comes from generators keyed by (seed, step, micro-step, process), so processes never share their masks, a
  resumed run draws what the uninterrupted one would have drawn, and evaluation does not move training.
- Evaluation uses the same noise every time, and reports bounds.
- A checkpoint appears under its name only once it is whole, and training goes on from it to the last bit.

Shapes: B batch, L length.
"""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from dllm_core.errors import DataError, OptionError
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.loading import denoiser_from
from dllm_core.noise.counter import key_from
from dllm_core.objectives.base import Objective, ObjectiveOutput
from dllm_core.training import checkpoints
from dllm_core.training.arguments import DiffusionArguments
from dllm_core.training.checks import check_attention, check_average, check_examples, check_resume
from dllm_core.training.collator import DiffusionCollator
from dllm_core.training.ema import WeightAverage
from dllm_core.training.launch import check_engine

if TYPE_CHECKING:
    from torch.utils.data import Dataset, IterableDataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.trainer_utils import EvalLoopOutput, TrainOutput

logger = logging.getLogger(__name__)

_TRAINING, _EVALUATION, _ORDER = 0, 1, 2  # the streams of noise, and the one of the order of examples


class DiffusionTrainer(Trainer):
    """Trains a diffusion language model.

    Args:
        model: a `Denoiser` (from `dllm.load`), or a Hugging Face model whose family an installed plugin serves.
        args: `DiffusionArguments`; None: its defaults.
        objective: from `dllm.objective`; trainers with a fixed objective make their own from `args`.
        train_dataset, eval_dataset: examples with ``input_ids`` and perhaps ``labels``.
        data_collator: None: pads and ignores the padding.
        processing_class: the tokenizer of a Hugging Face model; saved beside the weights.
        callbacks, optimizers: as in the Hugging Face Trainer.

    Raises:
        OptionError: no objective, or no installed family serves the model.
    """

    arguments_class: ClassVar[type[DiffusionArguments]] = DiffusionArguments
    loss_is_scaled_for_ga = True  # by the count over the optimizer step, see compute_loss

    def __init__(
        self,
        model: Denoiser | PreTrainedModel,
        args: DiffusionArguments | None = None,
        *,
        objective: Objective | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        data_collator: Callable[[list], dict[str, Tensor]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
    ) -> None:
        args = self.arguments_class() if args is None else args
        self.objective = self.default_objective(args) if objective is None else objective
        self.denoiser = model if isinstance(model, Denoiser) else denoiser_from(None, model, processing_class)
        self.average: WeightAverage | None = None  # of the weights, where args.ema_decay asks for it
        self._micro_step = self._epoch = 0
        self._evaluation_totals: list[Tensor] = []
        self._is_writing = False
        if args.n_gpu > 1:
            logger.warning("one process trains on one device; start one process a device with torchrun to use them all")
            args._n_gpu = 1  # torch's DataParallel cannot split a batch whose rows the head selects
        super().__init__(
            model=self.denoiser.model,
            args=args,
            data_collator=data_collator or DiffusionCollator(pad_token_id=self.denoiser.pad_token_id),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class or self.denoiser.tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.add_callback(UpdateAverage(self))
        check_engine(self)
        if args.compile:
            compile_backbone(self.denoiser.bare_model)

    def default_objective(self, args: DiffusionArguments) -> Objective:
        """The objective that the arguments fix; subclasses with one override this."""
        raise OptionError("DiffusionTrainer needs an objective, for example objective=dllm.objective('mdlm')")

    # ------------------------------------------------------------------------------------------------- training

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: object) -> TrainOutput:
        """As the Hugging Face Trainer, once model, data and checkpoint have been found to go together.

        Raises:
            DataError: no example teaches a token, or one is longer than the model reads.
            OptionError: the checkpoint is of another model, or an option does not go with another.
        """
        if resume_from_checkpoint is True:
            newest = checkpoints.newest_checkpoint(Path(self.args.output_dir))
            if newest is None:
                raise OptionError(f"no whole checkpoint in {self.args.output_dir!r}; train without resuming")
            resume_from_checkpoint = str(newest)
        check_average(self.args)
        check_attention(self.denoiser, self.args)
        self.objective.check_model(self.denoiser)
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        for kind, dataset in (("training", self.train_dataset), *(("evaluation", one) for one in evaluated.values())):
            if dataset is not None:
                check_examples(dataset, self.denoiser.context_length, kind=kind)
        if resume_from_checkpoint:
            check_resume(self.denoiser, Path(resume_from_checkpoint), averages=bool(self.args.ema_decay))
        if self.args.should_save:
            checkpoints.remove_half_written(Path(self.args.output_dir))
        self.accelerator.wait_for_everyone()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)

    def _prepare_for_training(self, max_steps: int, train_dataloader: object, resume_from_checkpoint: str | None):
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.args.ema_decay is not None:
            self.average = WeightAverage(self.accelerator.unwrap_model(prepared[0]), self.args.ema_decay)
            if resume_from_checkpoint:
                self.average.load(Path(resume_from_checkpoint))
        return prepared

    def _run_epoch(self, **options: object) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed at the end; the base class trains a step more
            self.control.should_training_stop = True
            return
        self._epoch = options["epoch"]
        super()._run_epoch(**options)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return KeyedSampler(sampler, lambda: key_from(seed, _ORDER, self._epoch))

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | None]:
        """The micro-batches of one optimizer step, and the denominator of their common loss."""
        self._micro_step = 0
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_num_items_in_batch(
        self, batch_samples: Sequence[Mapping[str, Tensor]], device: torch.device
    ) -> Tensor | None:
        """The objective's normalizer, summed over the micro-batches and processes of an optimizer step."""
        if not batch_samples:
            return None
        total = sum(self.objective.normalizer(batch) for batch in batch_samples).to(device)
        return self.accelerator.reduce(total, reduction="sum") if self.accelerator.num_processes > 1 else total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ObjectiveOutput]:
        """The loss of one micro-batch, its part of the optimizer step's loss, with fresh training noise."""
        self.objective.check_batch(inputs)
        generator = self._generator(_TRAINING, self.state.global_step, self._micro_step)
        self._micro_step += 1
        output = self._corrupt_and_score(self.objective, model, inputs, generator, num_items_in_batch)
        # Gradients are averaged over processes, but the denominator already counts them all.
        scale = 1 if num_items_in_batch is None else self.accelerator.num_processes
        loss = output.loss * scale
        return (loss, output) if return_outputs else loss

    def _corrupt_and_score(
        self,
        objective: Objective,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        generator: torch.Generator,
        normalizer: Tensor | None,
    ) -> ObjectiveOutput:
        denoiser = self._denoiser_around(model)
        _check_length(inputs["input_ids"], denoiser.context_length)
        corruption = objective.corrupt(inputs, denoiser, generator=generator)
        return objective.loss(denoiser, inputs, corruption, normalizer=normalizer)

    def _denoiser_around(self, model: nn.Module) -> Denoiser:
        """The denoiser over the model as it is wrapped now, so that the wrapper's own forward is the one called."""
        if model is self.denoiser.model:
            return self.denoiser
        around = copy.copy(self.denoiser)
        around.model = model
        return around

    def _generator(self, stream: int, *counters: int) -> torch.Generator:
        """Noise for these counters and this process; the same for the same numbers, whatever was drawn before."""
        key = key_from(self.args.seed, stream, *counters, self.args.process_index)
        return torch.Generator(device=self.args.device).manual_seed(key)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The trained model for use: with the averaged weights, where the training keeps an average."""
        with nullcontext() if _internal_call else self.averaged_weights():
            super().save_model(output_dir, _internal_call)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Inside, the model holds the averaged weights; nothing changes where there is no average."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _get_output_dir(self, trial: object) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, checkpoints.WRITING) if self._is_writing else folder

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        """Written to one side by all processes, brought in under its name by one."""
        folder, name = Path(self._get_output_dir(trial)), f"{checkpoints.PREFIX}{self.state.global_step}"
        if self.args.should_save:
            checkpoints.start_writing(folder)
        self.accelerator.wait_for_everyone()
        self._is_writing = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_writing = False
        written = folder / checkpoints.WRITING / name
        self._name_best_checkpoint(folder)
        if self.args.should_save:
            self.state.save_to_json(str(written / checkpoints.STATE_FILE))
            if self.average is not None:
                self.average.save(written)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            place = checkpoints.finish_writing(folder, name)
            checkpoints.remove_oldest(folder, self.args.save_total_limit, self.state.best_model_checkpoint)
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(place))
        self.accelerator.wait_for_everyone()

    def _issue_warnings_after_load(self, load_result: object) -> None:
        """Nothing: `check_resume` has compared all names and shapes, and tied weights are no missing ones."""

    def _name_best_checkpoint(self, folder: Path) -> None:
        """The base class looks for the best checkpoint beside the one being written."""
        best = folder / f"{checkpoints.PREFIX}{self.state.best_global_step}"
        if self.state.best_global_step == self.state.global_step or best.is_dir():
            self.state.best_model_checkpoint = str(best)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_writing:  # it is pushed from where it stays
            super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Weights, tokenizer and, of an adapter, where it belongs."""
        super()._save(output_dir, state_dict)
        if self.denoiser.lora is not None and self.args.should_save:  # under DeepSpeed every process comes here
            folder = Path(output_dir or self.args.output_dir)
            self.denoiser.lora.write(folder)
            (folder / "README.md").unlink(missing_ok=True)  # peft's card: a form with nothing filled in

    # ----------------------------------------------------------------------------------------------- evaluation

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of one evaluation batch, with noise that depends on nothing but the batch's number."""
        inputs = self._prepare_inputs(inputs)
        generator = self._generator(_EVALUATION, len(self._evaluation_totals))
        with torch.no_grad(), self.compute_loss_context_manager():
            output = self._corrupt_and_score(self.objective.for_evaluation(), model, inputs, generator, None)
        share = self.objective.normalizer(inputs)
        totals = [output.loss * share, share, output.nll_sum, output.token_count]
        self._evaluation_totals.append(torch.stack([value.float() for value in totals]))
        return output.loss, None, None

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Adds ``nll`` (upper bound on nats per token) and ``perplexity``; ``loss`` is normalised over all batches."""
        self._evaluation_totals = []
        # A loader draws a seed when it starts, and dropout would feel it.
        with torch.random.fork_rng(devices=[]), self.averaged_weights():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        if self._evaluation_totals:
            totals = self.accelerator.reduce(torch.stack(self._evaluation_totals).sum(0), reduction="sum")
            metrics = bounds(*totals.tolist())
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output


class KeyedSampler(torch.utils.data.Sampler):
    """The order that another sampler gives, drawn for each pass from a key alone.

    That one draws from the process's own stream, which a run that is resumed in a later epoch has at another place.
    """

    def __init__(self, sampler: LengthGroupedSampler, key: Callable[[], int]) -> None:
        self.sampler = sampler
        self.key = key

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.key())
        return iter(self.sampler)


class UpdateAverage(TrainerCallback):
    """Takes the weights into the trainer's average after every optimizer step."""

    def __init__(self, trainer: DiffusionTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, *_: object, **__: object) -> None:
        if self.trainer.average is not None and not self.trainer.accelerator.optimizer_step_was_skipped:
            self.trainer.average.update()


def bounds(loss_sum: float, loss_share: float, nll_sum: float, tokens: float) -> dict[str, float]:
    """Loss, bound on the negative log-likelihood in nats per token, and bound on the perplexity, from their sums."""
    nll = nll_sum / max(tokens, 1)
    perplexity = math.exp(nll) if nll < math.log(1e300) else math.inf
    return {"loss": loss_sum / max(loss_share, 1), "nll": nll, "perplexity": perplexity}


def compile_backbone(model: PreTrainedModel) -> None:
    """Compile, in place, everything below the vocabulary head: the rows that the head sees differ at every step."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's wrapper includes the head
    whole.base_model.compile()


def _check_length(input_ids: Tensor, context_length: int | None) -> None:
    if context_length is not None and input_ids.shape[1] > context_length:
        raise DataError(
            f"a batch is {input_ids.shape[1]} tokens long, the model reads at most {context_length}; shorten the data"
        )
