"""Edit flows against plain implementations: the targets of training, and the steps of the sampler.

`targets` makes a batch's targets, from pairs of texts to the edits that are still to be made at a time: aligned by
rapidfuzz and built by cumulative sums, against a dynamic programme and loops over tokens. Both get the same draws, and
the edits of both must lead to the same texts.

`sampling` takes one step of tau-leaping from given rates and states: rows of all texts at once, against a loop over
texts and tokens. Both project the rows that fire and no others, and must write the same texts. `published` has the loop
of the published sampler instead: text by text, all tokens through both heads, each probability compared on its own.
`running` takes the step with the pass of a small model in front, as a user's run does: one for the batch or one a text.

One process, one thread, alternating.

usage: python benchmarks/editflow.py [targets] [sampling] [published] [running] [--repeats 3]
           [--output benchmarks/results/editflow-cpu.json]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from dllm_editflow.apply import Rows, apply_edits
from dllm_editflow.choosing import CHANGE, INSERTION, WHICH_CHANGE, Moment, tau_leap
from dllm_editflow.columns import Remaining, remaining, show
from dllm_editflow.coupling import Coupling, Row, couple
from dllm_editflow.deciding import Decide, Limits
from dllm_editflow.dynamic import needleman_wunsch
from dllm_editflow.kinds import BLANK, DELETE, INSERT
from dllm_editflow.models.heads import EditStates
from dllm_editflow.options import EditFlowOptions
from dllm_editflow.sources import Tokens, parse_source
from dllm_editflow.state import lay_out

from dllm_core.noise.counter import uniform

VOCABULARY, MASK = 32_000, 32_000
TOKENS = Tokens(mask=MASK, plain=torch.arange(VOCABULARY))
SIZES = ((128, 8), (512, 8), (1024, 4), (4096, 1))  # tokens of a text, texts of a batch
KAPPA = 0.5
INNER = 20  # calls of the quick one in a turn


@dataclass(frozen=True)
class Result:
    """Seconds of each repetition, and their ratio's median."""

    part: str
    case: str
    tokens: int
    batch: int
    plain_seconds: list[float]
    ours_seconds: list[float]
    ratio_median: float
    equal: bool


def pairs(case: str, tokens: int, batch: int) -> list[tuple[list[int], list[int]]]:
    """(source, target) of every text: half as many masks as tokens, or a draft with 5% of errors."""
    chance = random.Random(f"{case} {tokens}")
    made = []
    for _ in range(batch):
        target = [chance.randrange(VOCABULARY) for _ in range(tokens)]
        if case == "masks":
            made.append(([MASK] * (tokens // 2), target))
            continue
        spoilt: list[int] = []
        for token in target:
            draw = chance.random()
            kept = [] if draw < 0.017 else [token] if draw > 0.033 else [chance.randrange(VOCABULARY)]
            spoilt += kept + ([chance.randrange(VOCABULARY)] if chance.random() < 0.017 else [])
        made.append((spoilt, target))
    return made


def ours(batch: list[tuple[list[int], list[int]]], draws: torch.Tensor) -> tuple[Coupling, Remaining]:
    """The production code: aligned columns, and the edits that remain once those with low draws have turned."""
    rows = [Row([0, *target], [False, *[True] * len(target)], source) for source, target in batch]
    coupling = couple(rows, parse_source("draft"), TOKENS, "optimal", torch.Generator())
    columns = torch.where(draws[:, : coupling.source.shape[1]] < KAPPA, coupling.target, coupling.source)
    return coupling, remaining(columns, coupling.target, show(columns, filler=0))


def plain(
    batch: list[tuple[list[int], list[int]]], draws: list[list[float]]
) -> list[tuple[list[int], list[int], list[tuple[int, int, int]]]]:
    """The same, token by token: dynamic programme, mixture, and a count for each remaining edit."""
    made = []
    for (source, target), own_draws in zip(batch, draws, strict=True):
        left, right = needleman_wunsch([0, *source], [0, *target])
        now = [b if draw < KAPPA else a for a, b, draw in zip(left, right, own_draws, strict=False)]
        made.append((left, right, [(row, a, b) for row, a, b in _rows(now, right) if a != b]))
    return made


def same_edits(made: list[tuple[list[int], list[int], list[tuple[int, int, int]]]], own: Coupling) -> bool:
    """Whether both alignments hold the same texts and are equally short; ties they may break otherwise."""
    pairs = zip(made, own.source.tolist(), own.target.tolist(), strict=True)
    return all(
        [t for t in left if t >= 0] == [t for t in own_left if t >= 0]
        and [t for t in right if t >= 0] == [t for t in own_right if t >= 0]
        and sum(a != b for a, b in zip(left, right, strict=True))
        == sum(a != b for a, b in zip(own_left, own_right, strict=True))
        for (left, right, _), own_left, own_right in pairs
    )


def _rows(now: list[int], target: list[int]) -> list[tuple[int, int, int]]:
    rows, seen = [], 0
    for a, b in zip(now, target, strict=True):
        rows.append((seen - (a == BLANK), a, b))
        seen += a != BLANK
    return rows


def targets(repeats: int) -> list[Result]:
    """Training targets, for masks and for drafts with a few errors."""
    results = []
    for case in ("masks", "draft"):
        for tokens, batch in SIZES:
            made = pairs(case, tokens, batch)
            draws = torch.rand(batch, 2 * tokens + 2, generator=torch.Generator().manual_seed(0))
            one = functools.partial(plain, made, draws.tolist())
            other = functools.partial(ours, made, draws)
            seconds = alternate(one, other, repeats if tokens < 2000 else 1)
            ratio = statistics.median(p / o for p, o in zip(*seconds, strict=True))
            results.append(Result("targets", case, tokens, batch, *seconds, ratio, same_edits(one(), other()[0])))
    return results


STEPS = ((128, 1), (128, 8), (1024, 1), (1024, 8), (4096, 1), (4096, 8))  # tokens of a text, texts of a batch
WIDTH, FACTOR = 64, 0.5  # of the states, of the rates
WORDS = 4_000  # tokens, then the mask: few, so that the step is timed and not the projection, which both do alike


@dataclass(frozen=True)
class Given:
    """What a step starts from: texts (B, L), what the model said of them, and the noise of every text."""

    rows: Rows
    states: EditStates
    moment: Moment


def given(tokens: int, batch: int) -> Given:
    """Drafts of which every token is wrong with 8% and misses one behind it with 4%."""
    generator = torch.Generator().manual_seed(tokens + batch)
    ids = torch.randint(WORDS, (batch, tokens), generator=generator).tolist()
    locked = [[place == 0 for place in range(tokens)]] * batch
    rows = lay_out(ids, locked, [[True] * tokens] * batch, 0, torch.device("cpu"))
    hidden = torch.randn(2, batch, tokens, WIDTH, generator=generator)
    head = torch.nn.Linear(WIDTH, WORDS + 1, bias=False)
    head.weight.data = torch.randn(head.weight.shape, generator=generator)
    rates = torch.tensor([0.04, 0.04, 0.04]).expand(batch, tokens, 3)
    keys = torch.arange(batch)
    moment = Moment(keys, torch.zeros_like(keys), torch.zeros(batch, dtype=torch.float64))
    return Given(rows, EditStates(rates, *hidden, head, head), moment)


@torch.no_grad()
def batched_step(start: Given) -> list[list[int]]:
    """The production code."""
    factors = torch.tensor([FACTOR], dtype=torch.float64)
    choose = functools.partial(tau_leap, moment=start.moment, factors=factors, horizon=1)
    none = Limits(None, None)
    decision = Decide(start.rows, choose, EditFlowOptions(), start.moment.keys, (), WORDS, none)(start.states)
    log = decision.log.tolist()
    grown = [0] * len(start.rows.lengths)
    for kind, row, *_ in log:
        grown[int(row)] += (kind == INSERT) - (kind == DELETE)
    width = start.rows.input_ids.shape[1] + max(grown)
    after = apply_edits(start.rows, decision.edits, width, 0).rows
    ends = zip(after.input_ids.tolist(), after.lengths.tolist(), strict=True)
    return [row[:length] for row, length in ends]


@torch.no_grad()
def looped_step(start: Given) -> list[list[int]]:
    """The same, text by text and token by token."""
    return [_one_text(start, row) for row in range(len(start.rows.lengths))]


def _one_text(start: Given, row: int) -> list[int]:
    states, written = start.states, []
    tokens, rates = start.rows.input_ids[row].tolist(), states.rates[row].tolist()
    places = torch.arange(len(tokens))
    kinds = (CHANGE, WHICH_CHANGE, INSERTION)
    draws = [uniform(start.moment.keys[row], kind, 0, 0, places).tolist() for kind in kinds]
    for place, token in enumerate(tokens):
        substitute, delete, insert = rates[place]
        if place == 0:  # locked
            substitute = delete = 0.0
        if draws[0][place] >= FACTOR * (substitute + delete):
            written.append(token)
        elif draws[1][place] * (substitute + delete) >= delete:
            written.append(_best(states.substitute(states.substitute_hidden[row, place]), token))
        if draws[2][place] < FACTOR * insert:
            written.append(_best(states.insert(states.insert_hidden[row, place]), WORDS))
    return written


def _best(logits: torch.Tensor, own: int) -> int:
    logits[[own, WORDS]] = -torch.inf
    return int(logits.argmax())


@torch.no_grad()
def published_step(start: Given) -> list[list[int]]:
    """The same as the published sampler goes about it: every token of a text is projected, and texts take turns."""
    return [_one_text_as_published(start, row) for row in range(len(start.rows.lengths))]


def _one_text_as_published(start: Given, row: int) -> list[int]:
    """Source: ZHZisZZ/dllm at ca17675, dllm/pipelines/editflow/sampler.py, its loop over positions."""
    states, tokens, written = start.states, start.rows.input_ids[row], []
    substitutes = states.substitute(states.substitute_hidden[row])  # (L, V)
    insertions = states.insert(states.insert_hidden[row])  # (L, V)
    places = torch.arange(len(tokens))
    kinds = (CHANGE, WHICH_CHANGE, INSERTION)
    draws = [uniform(start.moment.keys[row], kind, 0, 0, places) for kind in kinds]
    substitute, delete, insert = states.rates[row].unbind(-1)  # (L,)
    for place in range(len(tokens)):
        change = (substitute[place] + delete[place]) * (place > 0)
        if not bool(draws[0][place] < FACTOR * change):
            written.append(int(tokens[place]))
        elif not bool(draws[1][place] * change < delete[place]):
            written.append(_best(substitutes[place], int(tokens[place])))
        if bool(draws[2][place] < FACTOR * insert[place]):
            written.append(_best(insertions[place], WORDS))
    return written


def sampling(repeats: int) -> list[Result]:
    """Steps of the sampler, without the model's own time."""
    return [_steps("sampling", looped_step, size, repeats) for size in STEPS]


def published(repeats: int) -> list[Result]:
    """The same against the published loop."""
    return [_steps("published", published_step, size, repeats) for size in STEPS if size[0] < 2000]


def _steps(part: str, loop: Callable[[Given], list[list[int]]], size: tuple[int, int], repeats: int) -> Result:
    start = given(*size)
    one, other = (functools.partial(step, start) for step in (loop, batched_step))
    seconds = alternate(one, other, repeats)
    ratio = statistics.median(p / o for p, o in zip(*seconds, strict=True))
    return Result(part, "draft", *size, *seconds, ratio, one() == other())


PASSES = ((128, 8), (1024, 8))


def small_model() -> torch.nn.Module:
    """Two layers of a transformer: ids (B, L) to states (B, L, H)."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
    layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return torch.nn.Sequential(torch.nn.Embedding(WORDS + 1, WIDTH), layers).eval()


@torch.no_grad()
def asked(model: torch.nn.Module, start: Given) -> Given:
    """The start with the states that the model gives, in one pass over all of its texts."""
    hidden = model(start.rows.input_ids)
    return replace(start, states=replace(start.states, substitute_hidden=hidden, insert_hidden=hidden))


def running(repeats: int) -> list[Result]:
    """Steps of the sampler with the pass of a model, for the batch or text by text."""
    model, results = small_model(), []
    for tokens, batch in PASSES:
        start = given(tokens, batch)
        one = functools.partial(_texts_in_turn, model, start)
        other = functools.partial(_texts_together, model, start)
        seconds = alternate(one, other, repeats)
        ratio = statistics.median(p / o for p, o in zip(*seconds, strict=True))
        results.append(Result("running", "draft", tokens, batch, *seconds, ratio, one() == other()))
    return results


def _texts_together(model: torch.nn.Module, start: Given) -> list[list[int]]:
    return batched_step(asked(model, start))


@torch.no_grad()
def _texts_in_turn(model: torch.nn.Module, start: Given) -> list[list[int]]:
    return [_one_text(asked(model, _only(start, row)), 0) for row in range(len(start.rows.lengths))]


def _only(start: Given, row: int) -> Given:
    here = slice(row, row + 1)
    rows, moment = (type(each)(*(part[here] for part in each)) for each in (start.rows, start.moment))
    return Given(rows, replace(start.states, rates=start.states.rates[here]), moment)


def alternate(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of one call of each, turn by turn; of the quick one as the mean of many, as a worker calls it."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        start = time.perf_counter()
        first()
        middle = time.perf_counter()
        for _ in range(INNER):
            second()
        seconds[0].append(middle - start)
        seconds[1].append((time.perf_counter() - middle) / INNER)
    return seconds


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],  # at the end; above 1 others were at work
    }


PARTS: dict[str, Callable[[int], list[Result]]] = {
    "targets": targets,
    "sampling": sampling,
    "published": published,
    "running": running,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'part':>9} {'case':>6} {'tokens':>6} {'batch':>5} {'plain ms':>10} {'ours ms':>9} {'ratio':>8}  equal")
    results = [result for part in args.parts or PARTS for result in PARTS[part](args.repeats)]
    for r in results:
        plain_ms, ours_ms = (1000 * statistics.median(each) for each in (r.plain_seconds, r.ours_seconds))
        print(
            f"{r.part:>9} {r.case:>6} {r.tokens:>6} {r.batch:>5} {plain_ms:>10.1f} {ours_ms:>9.2f} "
            f"{r.ratio_median:>8.1f}  {r.equal}"
        )
    if args.output:
        text = json.dumps({"machine": machine(), "results": [asdict(r) for r in results]}, indent=2)
        partial = args.output.with_suffix(".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(args.output)


if __name__ == "__main__":
    main()
