"""`DataArguments`: which data a script uses, for ``transformers.HfArgumentParser``."""

from __future__ import annotations

from dataclasses import dataclass, field

from dllm_core.errors import OptionError

TRUNCATIONS = ("right", "filter")


@dataclass
class DataArguments:
    """Command-line arguments that choose the data and how examples are prepared.

    Raises:
        OptionError: a length or a process count below 1, or an unknown truncation.
    """

    dataset_args: str | None = field(
        default=None, metadata={"help": "Data set: a hub id or a local file, with its options."}
    )
    max_length: int = field(default=1024, metadata={"help": "Longest example, in tokens."})
    truncation: str = field(
        default="right",
        metadata={"help": "'right' keeps the first max_length tokens of a longer example, 'filter' leaves it out."},
    )
    num_proc: int = field(default=1, metadata={"help": "Processes that prepare the data."})

    def __post_init__(self) -> None:
        if self.truncation not in TRUNCATIONS:
            raise OptionError(f"truncation must be one of {', '.join(TRUNCATIONS)}; got {self.truncation!r}")
        for name in ("max_length", "num_proc"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
