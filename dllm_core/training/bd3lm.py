"""`BD3LMTrainer`: `DiffusionTrainer` with the block diffusion objective."""

from __future__ import annotations

from typing import ClassVar

from dllm_core.errors import OptionError
from dllm_core.objectives.base import Objective
from dllm_core.training.arguments import BD3LMConfig, DiffusionArguments
from dllm_core.training.trainer import DiffusionTrainer


class BD3LMTrainer(DiffusionTrainer):
    """Block diffusion training.

    Example:
        >>> BD3LMTrainer(dllm.load(path), BD3LMConfig(output_dir="out", block_size=8), train_dataset=examples).train()

    Raises:
        OptionError: `args` is no `BD3LMConfig`.
    """

    arguments_class: ClassVar[type[DiffusionArguments]] = BD3LMConfig

    def default_objective(self, args: DiffusionArguments) -> Objective:
        """As the `BD3LMConfig` says."""
        if not isinstance(args, BD3LMConfig):
            raise OptionError(f"BD3LMTrainer takes a BD3LMConfig, got {type(args).__name__}")
        return args.objective()
