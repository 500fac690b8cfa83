"""Training arguments: Hugging Face's, with the few defaults that differ for diffusion, and one class an objective."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from dllm_core.errors import OptionError
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

    Raises:
        OptionError: ``torch_compile`` was asked for.
    """

    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    compile: bool = field(default=False, metadata={"help": "Compile the model below its vocabulary head."})

    def __post_init__(self) -> None:
        super().__post_init__()
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
