"""How well ``editflow-tiny`` mends held-out functions, through the public API.

``python -m dllm_editflow.tiny.evaluate`` prints the table of the plugin's README, with ``--json`` records. A text
counts as mended only if it is right to the last character.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

import dllm_core as dllm
from dllm_core.config import at_least
from dllm_core.errors import DllmError
from dllm_editflow.alignment import distance
from dllm_editflow.tiny.functions import MOST_ERRORS, Exercise, exercises

if TYPE_CHECKING:
    from dllm_editflow.sampler import EditFlowSampler

BATCH = 50
CHECKPOINT = "editflow-tiny"


@dataclass(frozen=True, kw_only=True)
class Score:
    """What became of `count` held-out texts with as many planted errors.

    Args:
        exact: texts that are right.
        edits: made in all.
        needed: the least that would have done (Levenshtein).
        forward_passes: of the model, over batches of `BATCH` texts.
    """

    errors: int
    count: int
    exact: int
    edits: int
    needed: int
    forward_passes: int

    @property
    def churn(self) -> float:
        """Edits made by edits needed; 0 where none was needed and none made."""
        return self.edits / max(1, self.needed)


def score(sampler: EditFlowSampler, errors: int, count: int, seed: int = 0) -> Score:
    """Mend `count` held-out texts with that many planted errors."""
    at_least("count", count, 1)
    found = list(islice(exercises("held_out", seed, clean_share=float(errors == 0)), 40 * count))
    chosen = [one for one in found if one.errors == errors][:count]
    results = [mend(sampler, chosen[start : start + BATCH]) for start in range(0, len(chosen), BATCH)]
    texts = [text for part, *_ in results for text in part]
    return Score(
        errors=errors,
        count=len(chosen),
        exact=sum(text == one.text for text, one in zip(texts, chosen, strict=True)),
        edits=sum(made for _, made, _ in results),
        needed=sum(distance([*map(ord, one.draft)], [*map(ord, one.text)]) for one in chosen),
        forward_passes=sum(passes for *_, passes in results),
    )


def mend(sampler: EditFlowSampler, chosen: Sequence[Exercise]) -> tuple[list[str], int, int]:
    """The mended texts, the edits made, and the forward passes."""
    tokenizer = sampler.denoiser.tokenizer
    drafts = [tokenizer(one.draft, add_special_tokens=False)["input_ids"] for one in chosen]
    state = sampler.start_edit([[tokenizer.bos_token_id, *draft] for draft in drafts])
    while not state.finished:
        sampler.step(state)
    output = sampler.finish(state)
    return list(output.texts), sum(map(len, state.operations)), output.stats.forward_passes


def as_markdown(scores: Sequence[Score]) -> str:
    """The table of the README."""
    lines = ["| planted errors | texts | mended exactly | edits made / needed |", "|---|---|---|---|"]
    for one in scores:
        churn = f"{one.churn:.2f}" if one.needed else f"{one.edits} made, none needed"
        lines.append(f"| {one.errors} | {one.count} | {one.exact / one.count:.1%} | {churn} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Score the checkpoint on texts with no error, and with 1 to `MOST_ERRORS`."""
    parser = argparse.ArgumentParser(prog="python -m dllm_editflow.tiny.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=500, help="texts for each number of errors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one record a line")
    args = parser.parse_args(arguments)
    try:
        sampler = dllm.sampler("editflow/mend", dllm.load(args.checkpoint))
        scores = [score(sampler, errors, args.count, args.seed) for errors in range(MOST_ERRORS + 1)]
    except DllmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if args.json:
        print("\n".join(json.dumps(asdict(one) | {"churn": one.churn}) for one in scores))
    else:
        print(as_markdown(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
