"""`DiffusionTrainer`: the Hugging Face Trainer with a diffusion objective.

Three things differ from a language model's training, and all three go wrong silently when left to the base class:

- The loss is divided by what the *whole optimizer step* teaches, over all micro-batches and processes. The base class
  counts ``labels[..., 1:]`` for causal models, and leaves the division to a model that never sees the labels here.
- Noise comes from generators keyed by (seed, step, micro-step, process), so processes never share their masks, a
  resumed run draws what the uninterrupted one would have drawn, and evaluation does not move training.
- Evaluation uses the same noise every time, and reports bounds.

Shapes: B batch, L length.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from dllm_core.errors import DataError, OptionError
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.loading import denoiser_from
from dllm_core.noise.counter import key_from
from dllm_core.objectives.base import Objective, ObjectiveOutput
from dllm_core.training.arguments import DiffusionArguments
from dllm_core.training.collator import DiffusionCollator

if TYPE_CHECKING:
    from torch.utils.data import Dataset, IterableDataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.trainer_utils import EvalLoopOutput

logger = logging.getLogger(__name__)

_TRAINING, _EVALUATION = 0, 1  # the two streams of noise


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
        self._micro_step = 0
        self._evaluation_totals: list[Tensor] = []
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
        if args.compile:
            compile_backbone(self.denoiser.bare_model)

    def default_objective(self, args: DiffusionArguments) -> Objective:
        """The objective that the arguments fix; subclasses with one override this."""
        raise OptionError("DiffusionTrainer needs an objective, for example objective=dllm.objective('mdlm')")

    # ------------------------------------------------------------------------------------------------- training

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
        generator = self._generator(_TRAINING, self.state.global_step, self._micro_step)
        self._micro_step += 1
        output = self._corrupt_and_score(model, inputs, generator, num_items_in_batch)
        # Gradients are averaged over processes, but the denominator already counts them all.
        scale = 1 if num_items_in_batch is None else self.accelerator.num_processes
        loss = output.loss * scale
        return (loss, output) if return_outputs else loss

    def _corrupt_and_score(
        self, model: nn.Module, inputs: Mapping[str, Tensor], generator: torch.Generator, normalizer: Tensor | None
    ) -> ObjectiveOutput:
        denoiser = self._denoiser_around(model)
        _check_length(inputs["input_ids"], denoiser.context_length)
        corruption = self.objective.corrupt(inputs, denoiser, generator=generator)
        return self.objective.loss(denoiser, inputs, corruption, normalizer=normalizer)

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

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Weights, tokenizer and, of an adapter, where it belongs."""
        super()._save(output_dir, state_dict)
        if self.denoiser.lora is not None:
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
            output = self._corrupt_and_score(model, inputs, generator, normalizer=None)
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
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed when it starts, and dropout would feel it
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        if self._evaluation_totals:
            totals = self.accelerator.reduce(torch.stack(self._evaluation_totals).sum(0), reduction="sum")
            metrics = bounds(*totals.tolist())
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output


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
