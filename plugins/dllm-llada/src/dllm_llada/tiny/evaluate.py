"""Accuracy of ``llada-tiny`` on held-out exercises, by skill and decoding order, through the public API.

``python -m dllm_llada.tiny.evaluate`` prints the table of the plugin's README as Markdown; ``--json`` prints records.
An answer counts only if it is right to the last character.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

import dllm_core as dllm
from dllm_core.config import at_least
from dllm_core.errors import DllmError, OptionError
from dllm_llada.tiny.generate import exercises
from dllm_llada.tiny.tasks import SKILLS, Exercise, Line

if TYPE_CHECKING:
    from dllm_core import Denoiser, Sampler

DRAWS_PER_EXERCISE = 20  # before concluding that there are not that many
NEW_TOKENS = 32  # the longest answer, a solved grid, takes 20 with its end of turn
# Progressions are practised too, but not learned well enough to be claimed.
CLAIMED = tuple(skill for skill in SKILLS if skill != "progression")
# One token a step in both orders: a block of one position leaves no choice but left to right.
ORDERS: dict[str, dict[str, object]] = {
    "confidence": {"block_size": None},
    "left to right": {"block_size": 1},
    "one step": {"block_size": None, "steps": 1},
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """How many of `count` held-out exercises of a skill were answered exactly right in one decoding order."""

    skill: str
    order: str
    correct: int
    count: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.count


def held_out_exercises(skill: str, count: int, seed: int) -> list[Exercise]:
    """`count` different held-out exercises of `skill`, reproducible from `seed`.

    Raises:
        OptionError: there are hardly that many.
    """
    at_least("count", count, 1)
    found: dict[Exercise, None] = {}
    for exercise in islice(exercises("held_out", seed, (skill,)), DRAWS_PER_EXERCISE * count):
        found[exercise] = None
        if len(found) == count:
            return list(found)
    raise OptionError(f"{skill} has few more than {len(found)} different held-out exercises, not {count}; lower count")


def prompts_with_answers(count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` held-out exercises of the claimed skills, as lines of a prompts file, for ``dllm bench``."""
    share = -(-count // len(CLAIMED))
    by_skill = [held_out_exercises(skill, share, seed) for skill in CLAIMED]
    chosen = [exercise for one_of_each in zip(*by_skill, strict=True) for exercise in one_of_each][:count]
    return sorted((_as_line(exercise) for exercise in chosen), key=lambda line: "infill" in line)


def _as_line(exercise: Exercise) -> dict[str, str]:
    if isinstance(exercise, Line):
        return {"infill": exercise.with_holes("[MASK]"), "answer": exercise.text, "skill": exercise.skill}
    return {"prompt": exercise.request, "answer": exercise.answer, "skill": exercise.skill}


def answers(sampler: Sampler, batch: Sequence[Exercise]) -> list[str]:
    """What the model makes of exercises of one kind: the answers of turns, or the completed lines."""
    denoiser = sampler.denoiser
    if isinstance(batch[0], Line):
        canvases = [line.with_holes(denoiser.tokenizer.mask_token) for line in batch]
        return sampler.infill(canvases).texts
    return sampler.sample([[{"role": "user", "content": turn.request}] for turn in batch]).texts


def count_correct(sampler: Sampler, chosen: Sequence[Exercise], batch_size: int) -> int:
    """How many of the exercises `sampler` gets exactly right."""
    correct = 0
    for start in range(0, len(chosen), batch_size):
        batch = chosen[start : start + batch_size]
        wanted = [one.text if isinstance(one, Line) else one.answer for one in batch]
        correct += sum(got == want for got, want in zip(answers(sampler, batch), wanted, strict=True))
    return correct


def evaluate(
    denoiser: Denoiser, *, skills: Sequence[str], count: int, seed: int = 0, batch_size: int = 50
) -> Iterator[Score]:
    """Scores of every skill in every decoding order, one at a time as they are ready."""
    for skill in skills:
        chosen = held_out_exercises(skill, count, seed)
        for order, options in ORDERS.items():
            sampler = dllm.sampler("mdlm", denoiser, max_new_tokens=NEW_TOKENS, **options)
            yield Score(skill=skill, order=order, correct=count_correct(sampler, chosen, batch_size), count=len(chosen))


def markdown(scores: Sequence[Score]) -> str:
    """The scores as a table: a row a skill, a column a decoding order, in percent."""
    cells = {(score.skill, score.order): f"{100 * score.accuracy:.1f}" for score in scores}
    rows = [("skill", *ORDERS), ("---", *["---:"] * len(ORDERS))]
    rows += [(skill, *(cells[skill, order] for order in ORDERS)) for skill in dict.fromkeys(s.skill for s in scores)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description="Accuracy of llada-tiny on held-out exercises.")
    parser.add_argument("--model", default="llada-tiny", help="checkpoint name or folder (default: %(default)s)")
    parser.add_argument(
        "--skills", nargs="+", choices=tuple(SKILLS), default=CLAIMED, metavar="SKILL", help=f"of {', '.join(SKILLS)}"
    )
    parser.add_argument("--count", type=int, default=500, help="exercises per skill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which exercises are drawn (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="print JSON records instead of a Markdown table")
    options = parser.parse_args(arguments)
    scores = []
    denoiser = dllm.load(options.model)
    for score in evaluate(
        denoiser,
        skills=options.skills,
        count=options.count,
        seed=options.seed,
        batch_size=options.batch_size,
    ):
        scores.append(score)
        print(f"{score.skill}, {score.order}: {score.correct}/{score.count}", file=sys.stderr)
    print(json.dumps([asdict(score) for score in scores], indent=2) if options.json else markdown(scores))


if __name__ == "__main__":
    try:
        main()
    except DllmError as error:
        sys.exit(f"Error: {error}")
