"""Training arguments: Hugging Face's, with the few defaults that differ for diffusion, and one class an objective."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from dllm_core.errors import OptionError
from dllm_core.objectives.bd3lm import BD3LMObjective
from dllm_core.objectives.mdlm import MDLMObjective


@dataclass
class DiffusionArguments(TrainingArguments):
    """`transformers.TrainingArguments` for `DiffusionTrainer`.

    Args:
        remove_unused_columns: off: an objective may read columns that the model's forward does not take.
        logging_nan_inf_filter: off: a loss that is not a number should be seen, and the filter makes the host wait for
            the device at every step.
        compile: compile the model below its vocabulary head with torch.compile. Faster on most machines after the
            first steps; needs a C++ compiler on the CPU.
        ema_decay: keep an exponential moving average of the weights, with this decay, for instance 0.9999. Evaluation
            uses it, and it is what is published; checkpoints hold both. See `dllm_core.training.ema.WeightAverage`.
        accelerator_config: each process reads its own batches of a stream, unless ``dispatch_batches`` says otherwise.
        save_only_model: off, as in Hugging Face: the optimizer's state is saved, without which nothing can be resumed.

    Raises:
        OptionError: ``torch_compile`` was asked for, or `ema_decay` is not between 0 and 1.
    """

    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    compile: bool = field(default=False, metadata={"help": "Compile the model below its vocabulary head."})

    ema_decay: float | None = field(default=None, metadata={"help": "Decay of the average of the weights."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accelerator_config.dispatch_batches is None:
            # Accelerate's default for streams joins the batches of all processes, which differ in width here.
            self.accelerator_config.dispatch_batches = False
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise OptionError(f"ema_decay must lie between 0 and 1, for example 0.9999; got {self.ema_decay}")
        if self.torch_compile:
            # The rows to project are chosen anew at every step, so a graph with the head in it is never reused.
            raise OptionError(
                "torch_compile would recompile at every step; use compile=True, which leaves out the head"
            )


@dataclass
class MDLMConfig(DiffusionArguments):
    """Arguments of `MDLMTrainer`: how to train, and the options of `dllm_core.objectives.MDLMObjective`.

    Raises:
        OptionError: an option of the objective out of range.
    """

    schedule: str = field(default="linear", metadata={"help": "Noise schedule."})
    weighting: str = field(default="schedule", metadata={"help": "Weights of the hidden tokens."})
    normalization: str = field(default="token", metadata={"help": "token, sequence or batch."})
    time_epsilon: float = field(default=1e-3, metadata={"help": "Lowest diffusion time."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objective()

    def objective(self) -> MDLMObjective:
        """The objective that these arguments describe."""
        return MDLMObjective(
            schedule=self.schedule,
            weighting=self.weighting,
            normalization=self.normalization,
            time_epsilon=self.time_epsilon,
        )


@dataclass
class BD3LMConfig(MDLMConfig):
    """Arguments of `BD3LMTrainer`: how to train, and the options of `dllm_core.objectives.BD3LMObjective`.

    Raises:
        OptionError: an option of the objective out of range.
    """

    block_size: int = field(default=32, metadata={"help": "Positions of a block."})
    time_per: str = field(default="block", metadata={"help": "A diffusion time for each block, or one a sequence."})
    low_discrepancy: bool = field(default=False, metadata={"help": "Spread the times of a batch evenly."})
    noise_range: tuple[float, float] = field(default=(0.0, 1.0), metadata={"help": "Lowest and highest time."})

    def objective(self) -> BD3LMObjective:
        """The objective that these arguments describe."""
        return BD3LMObjective(
            schedule=self.schedule,
            weighting=self.weighting,
            normalization=self.normalization,
            time_epsilon=self.time_epsilon,
            block_size=self.block_size,
            time_per=self.time_per,
            low_discrepancy=self.low_discrepancy,
            noise_range=self.noise_range,
        )
