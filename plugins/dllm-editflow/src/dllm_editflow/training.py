"""`EditFlowTrainer`: `DiffusionTrainer` with the Edit Flows objective."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

from dllm_core.errors import OptionError
from dllm_core.objectives.base import Objective
from dllm_core.training import DiffusionArguments, DiffusionTrainer
from dllm_editflow.objective import EditFlowObjective


@dataclass
class EditFlowConfig(DiffusionArguments):
    """Arguments of `EditFlowTrainer`: how to train, and the options of `dllm_editflow.EditFlowObjective`.

    Raises:
        OptionError: an option of the objective out of range.
    """

    source: str = field(default="masks[length:64]", metadata={"help": "What texts are made from."})
    alignment: str = field(default="optimal-shuffled", metadata={"help": "Which token becomes which."})
    kappa: str = field(default="cubic", metadata={"help": "Schedule of kappa."})
    max_weight: float | None = field(default=20.0, metadata={"help": "Highest weight of a time."})
    normalization: str = field(default="batch", metadata={"help": "batch, sequence or token."})
    propagation: float = field(default=0.0, metadata={"help": "Rate at which columns pull their neighbours along."})
    condition_dropout: float = field(default=0.0, metadata={"help": "Share of texts with a hidden condition."})
    time_epsilon: float = field(default=1e-3, metadata={"help": "Times are below 1 minus this."})
    locked_rates: bool = field(default=False, metadata={"help": "Let rates of locked tokens count, as published."})
    own_token: bool = field(default=False, metadata={"help": "Allow substitution by itself, as published."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objective()

    def objective(self) -> EditFlowObjective:
        """The objective that these arguments describe."""
        return EditFlowObjective(**{each.name: getattr(self, each.name) for each in fields(EditFlowObjective)})


class EditFlowTrainer(DiffusionTrainer):
    """Edit Flows training. Batches may bring aligned columns, see `dllm_editflow.collator.AlignWrapper`.

    Example:
        >>> EditFlowTrainer(dllm.load(path), EditFlowConfig(output_dir="out"), train_dataset=examples).train()

    Raises:
        OptionError: `args` is no `EditFlowConfig`.
    """

    arguments_class: ClassVar[type[DiffusionArguments]] = EditFlowConfig

    def default_objective(self, args: DiffusionArguments) -> Objective:
        """As the `EditFlowConfig` says."""
        if not isinstance(args, EditFlowConfig):
            raise OptionError(f"EditFlowTrainer takes an EditFlowConfig, got {type(args).__name__}")
        return args.objective()
