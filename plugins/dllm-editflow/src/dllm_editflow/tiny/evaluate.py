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
CLEAN_SHARE_OF_FILES = 0.35
FILES = "2 or 3 functions, up to 3 errors each"
KINDS = ("no error", *(f"{count} error{'s' * (count > 1)}" for count in range(1, MOST_ERRORS + 1)), FILES)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What became of `count` held-out texts of one kind.

    Args:
        kind: one of `KINDS`; one function, unless it says otherwise.
        exact: texts that are right.
        edits: made in all.
        needed: the least that would have done (Levenshtein).
        forward_passes: of the model, over batches of `BATCH` texts.
    """

    kind: str
    count: int
    exact: int
    edits: int
    needed: int
    forward_passes: int

    @property
    def churn(self) -> float:
        """Edits made by edits needed; 0 where none was needed and none made."""
        return self.edits / max(1, self.needed)


def held_out(kind: str, count: int, seed: int = 0) -> list[Exercise]:
    """`count` held-out texts of a kind, reproducible from `seed`."""
    at_least("count", count, 1)
    if kind == FILES:
        drawn = exercises("held_out", seed, clean_share=CLEAN_SHARE_OF_FILES, most_functions=3)
        fitting = (one for one in drawn if one.text.count("def ") > 1)
    else:
        errors = KINDS.index(kind)
        drawn = exercises("held_out", seed, clean_share=float(errors == 0))
        fitting = (one for one in drawn if one.errors == errors)
    return list(islice(fitting, count))


def score(sampler: EditFlowSampler, kind: str, count: int, seed: int = 0) -> Score:
    """Mend `count` held-out texts of a kind."""
    chosen = held_out(kind, count, seed)
    results = [mend(sampler, chosen[start : start + BATCH]) for start in range(0, count, BATCH)]
    texts = [text for part, *_ in results for text in part]
    return Score(
        kind=kind,
        count=count,
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
    lines = ["| held-out texts | count | mended exactly | edits made / needed |", "|---|---|---|---|"]
    for one in scores:
        churn = f"{one.churn:.2f}" if one.needed else f"{one.edits} made, none needed"
        lines.append(f"| {one.kind} | {one.count} | {one.exact / one.count:.1%} | {churn} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Score the checkpoint on every kind of text."""
    parser = argparse.ArgumentParser(prog="python -m dllm_editflow.tiny.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=500, help="texts of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one record a line")
    args = parser.parse_args(arguments)
    try:
        sampler = dllm.sampler("editflow/mend", dllm.load(args.checkpoint))
        scores = [score(sampler, kind, args.count, args.seed) for kind in KINDS]
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
