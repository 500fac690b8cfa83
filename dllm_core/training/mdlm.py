"""`MDLMTrainer`: `DiffusionTrainer` with the masked diffusion objective."""

from __future__ import annotations

from typing import ClassVar

from dllm_core.errors import OptionError
from dllm_core.objectives.base import Objective
from dllm_core.training.arguments import DiffusionArguments, MDLMConfig
from dllm_core.training.trainer import DiffusionTrainer


class MDLMTrainer(DiffusionTrainer):
    """Masked diffusion training.

    Example:
        >>> MDLMTrainer(dllm.load(path), MDLMConfig(output_dir="out"), train_dataset=examples).train()

    Raises:
        OptionError: `args` is no `MDLMConfig`.
    """

    arguments_class: ClassVar[type[DiffusionArguments]] = MDLMConfig

    def default_objective(self, args: DiffusionArguments) -> Objective:
        """As the `MDLMConfig` says."""
        if not isinstance(args, MDLMConfig):
            raise OptionError(f"MDLMTrainer takes an MDLMConfig, got {type(args).__name__}")
        return args.objective()
