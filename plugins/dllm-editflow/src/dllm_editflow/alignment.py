"""Alignments: which token of the source becomes which token of the target, column by column.

A column is a pair of tokens, one of which may be `BLANK`: (blank, b) inserts b, (a, blank) deletes a, (a, b)
substitutes, (a, a) keeps. Source: Havasi et al., arXiv:2506.09018, section 3.1.

What a flow learns depends on where its edits stand, so ties between equally short alignments matter. `optimal` leaves
them to rapidfuzz, which strips what both sides begin and end with and then takes one of several optima;
`optimal-shuffled` draws the places of the blanks evenly within each run of edits, which removes that bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from rapidfuzz.distance import Levenshtein

from dllm_core.config import one_of
from dllm_core.errors import DataError
from dllm_editflow.dynamic import needleman_wunsch
from dllm_editflow.kinds import BLANK


class Alignment(NamedTuple):
    """Source and target with blanks, equally long lists of token ids and `BLANK`."""

    source: list[int]
    target: list[int]


def align(
    source: Sequence[int], target: Sequence[int], mode: str = "optimal", generator: torch.Generator | None = None
) -> Alignment:
    """Align two texts.

    Args:
        source, target: token ids in lists. Tensors are refused: rapidfuzz finds no difference between them, whatever
            they hold.
        mode: ``optimal`` (fewest edits), ``optimal-shuffled`` (fewest edits, places drawn), ``random`` (half of the
            source substituted, columns in random order: the paper's uniform source), ``shifted`` (position by
            position, the longer one's rest at the end), ``delete-insert`` (everything deleted, then inserted),
            ``published`` (fewest edits with the existing framework's ties, slow: `dllm_editflow.dynamic`).
        generator: for the modes that draw.

    Raises:
        DataError: something else than lists of integers.
        OptionError: no such mode.
    """
    one_of("alignment", mode, MODES)
    for name, tokens in (("source", source), ("target", target)):
        _check_tokens(name, tokens)
    return MODES[mode](source, target, generator)


def distance(source: Sequence[int], target: Sequence[int]) -> int:
    """The least number of insertions, deletions and substitutions from one to the other (Levenshtein).

    Raises:
        DataError: something else than lists of integers.
    """
    _check_tokens("source", source)
    _check_tokens("target", target)
    return Levenshtein.distance(source, target)


def _check_tokens(name: str, tokens: Sequence[int]) -> None:
    if not isinstance(tokens, list) or not set(map(type, tokens)) <= {int}:
        kind = type(tokens).__name__ if not isinstance(tokens, list) else "a list of other things"
        raise DataError(f"the {name} of an alignment must be a list of token ids, got {kind}; write tensor.tolist()")


def _optimal(source: Sequence[int], target: Sequence[int], _: torch.Generator | None) -> Alignment:
    left: list[int] = []
    right: list[int] = []
    for _tag, begin, end, other_begin, other_end in Levenshtein.opcodes(source, target).as_list():
        left += source[begin:end]
        right += target[other_begin:other_end]
        if begin == end:  # a run that is replaced is as long on both sides
            left += [BLANK] * (other_end - other_begin)
        elif other_begin == other_end:
            right += [BLANK] * (end - begin)
    return Alignment(left, right)


def _optimal_shuffled(source: Sequence[int], target: Sequence[int], generator: torch.Generator | None) -> Alignment:
    aligned = Alignment([], [])
    for keeps, left, right in _merged(_runs(source, target)):
        places = range(len(left)) if keeps else _drawn_places(left, right, generator)
        _put(aligned, left, right, places)
    return aligned


def _runs(source: Sequence[int], target: Sequence[int]) -> Iterator[tuple[bool, list[int], list[int]]]:
    """(kept, tokens of the source, tokens of the target) from left to right."""
    for code in Levenshtein.opcodes(source, target):
        left, right = source[code.src_start : code.src_end], target[code.dest_start : code.dest_end]
        yield code.tag == "equal", left, right


def _merged(runs: Iterator[tuple[bool, list[int], list[int]]]) -> Iterator[tuple[bool, list[int], list[int]]]:
    """Neighbouring edits as one: between two kept runs the order of its kinds is an accident."""
    left, right = [], []
    for keeps, own_left, own_right in runs:
        if not keeps:
            left, right = left + own_left, right + own_right
            continue
        if left or right:
            yield False, left, right
            left, right = [], []
        yield True, own_left, own_right
    if left or right:
        yield False, left, right


def _put(aligned: Alignment, left: list[int], right: list[int], places: Sequence[int]) -> None:
    """Append a run; `places` are the columns of the shorter side among those of the longer."""
    longer = max(len(left), len(right))
    for side, tokens in ((aligned.source, left), (aligned.target, right)):
        if len(tokens) == longer:
            side.extend(tokens)
            continue
        row = [BLANK] * longer
        for place, token in zip(places, tokens, strict=True):
            row[place] = token
        side.extend(row)


def _drawn_places(left: list[int], right: list[int], generator: torch.Generator | None) -> Sequence[int]:
    longer, shorter = max(len(left), len(right)), min(len(left), len(right))
    if shorter in (0, longer):  # nothing to draw, as in most runs of a draft
        return range(shorter)
    return torch.randperm(longer, generator=generator)[:shorter].sort().values.tolist()


def _random(source: Sequence[int], target: Sequence[int], generator: torch.Generator | None) -> Alignment:
    """Half of the source is deleted, half substituted, the rest of the target inserted, in random order.

    Source: arXiv:2506.09018, appendix, listing of the uniform source (``get_z``).
    """
    both = min((len(source) + 1) // 2, len(target))
    kinds = [(True, True)] * both + [(True, False)] * (len(source) - both) + [(False, True)] * (len(target) - both)
    order = torch.randperm(len(kinds), generator=generator).tolist()
    left, right = iter(source), iter(target)
    columns = [
        (next(left) if has_left else BLANK, next(right) if has_right else BLANK)
        for has_left, has_right in (kinds[place] for place in order)
    ]
    return Alignment([a for a, _ in columns], [b for _, b in columns])


def _shifted(source: Sequence[int], target: Sequence[int], _: torch.Generator | None) -> Alignment:
    length = max(len(source), len(target))
    return Alignment(*([*side, *[BLANK] * (length - len(side))] for side in (source, target)))


def _delete_insert(source: Sequence[int], target: Sequence[int], _: torch.Generator | None) -> Alignment:
    return Alignment([*source, *[BLANK] * len(target)], [*[BLANK] * len(source), *target])


def _published(source: Sequence[int], target: Sequence[int], _: torch.Generator | None) -> Alignment:
    return Alignment(*needleman_wunsch(source, target))


MODES: dict[str, Callable[[Sequence[int], Sequence[int], torch.Generator | None], Alignment]] = {
    "optimal": _optimal,
    "optimal-shuffled": _optimal_shuffled,
    "random": _random,
    "shifted": _shifted,
    "delete-insert": _delete_insert,
    "published": _published,
}
