"""Speed and quality of samplers, measured side by side on the same prompts in one process.

Every cell runs once to warm up; then all cells run in turn, again and again, so that a machine that slows down slows
all of them down. Times are medians over the repeats; counts are the same in each.
"""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import distributions
from pathlib import Path

import torch

from dllm_core import __version__, registry
from dllm_core.errors import OptionError, PromptError
from dllm_core.evaluation.grid import Cell
from dllm_core.models import Denoiser
from dllm_core.samplers.base import Sampler
from dllm_core.samplers.output import SampleOutput, SampleStats
from dllm_core.samplers.parts import in_force

FORMAT = 1
REPORTED = ("dllm-", "torch", "transformers", "accelerate")  # distributions whose versions a result names


@dataclass(frozen=True)
class Exercise:
    """One prompt.

    Args:
        ids: token ids; of a text with blanks they hold mask tokens.
        is_infill: fill the blanks instead of completing.
        answer: the one right text, None where nothing is right or wrong.
    """

    ids: Sequence[int]
    is_infill: bool = False
    answer: str | None = None


@dataclass
class Measurement:
    """What one cell did.

    Args:
        cell: the sampler and its options.
        options: every option in force, those of the rule and the cache included.
        stats: counts of one repeat, over all batches; its seconds are the median.
        seconds: of each repeat.
        texts: what was generated, in the order of the exercises.
        correct, answered: how many exercises were right to the last character, of those that have an answer.
    """

    cell: Cell
    options: Mapping[str, object]
    stats: SampleStats = field(default_factory=SampleStats)
    seconds: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    correct: int = 0
    answered: int = 0

    @property
    def accuracy(self) -> float | None:
        """Between 0 and 1, None where no exercise has an answer."""
        return self.correct / self.answered if self.answered else None

    @property
    def standard_error(self) -> float:
        """Of the accuracy: binomial; 0 where nothing is graded."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.answered) if self.answered else 0.0

    @property
    def forwards_per_second(self) -> float:
        return self.stats.forward_passes / self.stats.seconds if self.stats.seconds else 0.0

    def as_dict(self) -> dict[str, object]:
        """For JSON: counts, rates and settings."""
        return {
            "label": self.cell.label,
            "sampler": self.cell.sampler,
            "stats": self.stats.as_dict() | {"forwards_per_second": self.forwards_per_second},
            "seconds": self.seconds,
            "accuracy": self.accuracy,
            "correct": self.correct,
            "answered": self.answered,
            "options": dict(self.options),
            "texts": self.texts,
        }


@dataclass(frozen=True)
class LeftOut:
    """A cell that this model cannot do, and why."""

    cell: Cell
    reason: str

    def as_dict(self) -> dict[str, object]:
        return {"label": self.cell.label, "sampler": self.cell.sampler, "reason": self.reason}


@dataclass
class _Contender:
    measurement: Measurement
    sampler: Sampler


class Benchmark:
    """Samplers that are measured against one another on one model.

    Args:
        denoiser: the model.
        cells: from `dllm_core.evaluation.grid`.
        exercises: what each generates; checked against every cell here.
        batch_size: exercises that are generated together.

    Attributes:
        measurements: one for each cell that the model can do, filled by `run`.
        left_out: the others.

    Raises:
        OptionError: the model can do none of the cells, or a batch size below 1.
        PromptError: an exercise does not fit the context.
    """

    def __init__(
        self, denoiser: Denoiser, cells: Sequence[Cell], exercises: Sequence[Exercise], *, batch_size: int = 8
    ) -> None:
        self.denoiser, self.exercises = denoiser, exercises
        self.batches = list(batches(exercises, batch_size))
        self.left_out: list[LeftOut] = []
        self._contenders: list[_Contender] = []
        for cell in cells:
            try:
                sampler = make_sampler(denoiser, cell)
            except OptionError as error:  # of the right type and in range, but not for this model or together
                self.left_out.append(LeftOut(cell, str(error)))
                continue
            for batch in self.batches:
                _start(sampler, batch, cell)
            self._contenders.append(_Contender(Measurement(cell, in_force(sampler)), sampler))
        if not self._contenders:
            reasons = "; ".join(dict.fromkeys(each.reason for each in self.left_out))
            raise OptionError(f"this model can do none of these samplers: {reasons}")

    @property
    def measurements(self) -> list[Measurement]:
        return [contender.measurement for contender in self._contenders]

    def run(self, repeats: int) -> Iterator[str]:
        """Warm up, then measure all cells in turn, `repeats` times; yields what comes next, before it does."""
        for contender in self._contenders:
            yield f"warming up {contender.measurement.cell.label}"
            generate(contender.sampler, _one_of_each_kind(self.batches))
        for repeat in range(repeats):
            for contender in self._contenders:
                yield f"repeat {repeat + 1} of {repeats}: {contender.measurement.cell.label}"
                texts, stats = generate(contender.sampler, self.batches)
                _note(contender.measurement, self.exercises, texts, stats)


def make_sampler(denoiser: Denoiser, cell: Cell) -> Sampler:
    """The cell's sampler on this model. Raises OptionError where the two do not go together."""
    return registry.load("sampler", cell.sampler)(denoiser, **cell.options)


def batches(exercises: Sequence[Exercise], size: int) -> Iterator[list[Exercise]]:
    """Neighbours in groups of at most `size`; texts with blanks apart, as they take another call."""
    group: list[Exercise] = []
    for exercise in exercises:
        if group and (len(group) == size or group[0].is_infill != exercise.is_infill):
            yield group
            group = []
        group.append(exercise)
    if group:
        yield group


def generate(sampler: Sampler, groups: Sequence[Sequence[Exercise]]) -> tuple[list[str], SampleStats]:
    """The texts of all exercises, and the counts of all batches together."""
    outputs = [_generate(sampler, group) for group in groups]
    texts = [text for output in outputs for text in output.texts or str(output).split("\n")]
    return texts, total([output.stats for output in outputs])


def total(stats: Sequence[SampleStats]) -> SampleStats:
    """Counts and seconds of several runs: sums, and of the cache's memory the most."""
    sums = {entry.name: sum(getattr(each, entry.name) for each in stats) for entry in fields(SampleStats)}
    return SampleStats(**sums | {"cache_bytes": max(each.cache_bytes for each in stats)})


def machine() -> dict[str, object]:
    """What figures of this process are measured on."""
    return {
        "processor": _processor(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"dllm-core": __version__} | _versions(),
    }


def _versions() -> dict[str, str]:
    found = {each.metadata["Name"]: each.version for each in distributions()}
    return {name: found[name] for name in sorted(found) if name.startswith(REPORTED)}


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _start(sampler: Sampler, batch: Sequence[Exercise], cell: Cell) -> None:
    ids = [exercise.ids for exercise in batch]
    try:
        _ = sampler.start_infill(ids) if batch[0].is_infill else sampler.start(ids)
    except PromptError as error:
        raise PromptError(f"{cell.label}: {error}") from error


def _generate(sampler: Sampler, batch: Sequence[Exercise]) -> SampleOutput:
    ids = [exercise.ids for exercise in batch]
    return sampler.infill(ids) if batch[0].is_infill else sampler.sample(ids)


def _one_of_each_kind(groups: Sequence[Sequence[Exercise]]) -> list[Sequence[Exercise]]:
    return list({group[0].is_infill: group for group in reversed(groups)}.values())


def _note(measurement: Measurement, exercises: Sequence[Exercise], texts: list[str], stats: SampleStats) -> None:
    measurement.seconds.append(stats.seconds)
    stats.seconds = statistics.median(measurement.seconds)
    measurement.stats, measurement.texts = stats, texts
    graded = [(text, each.answer) for text, each in zip(texts, exercises, strict=True) if each.answer is not None]
    measurement.correct, measurement.answered = sum(text == answer for text, answer in graded), len(graded)
