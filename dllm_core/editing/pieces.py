"""The text of a canvas on which some tokens are the draft's and others are new.

New tokens are decoded together where they stand side by side: several of them may be one character.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from dllm_core.editing.draft import Draft

NEW = -1
Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Piece:
    """A token of the canvas.

    Args:
        key: which one it is, as long as it stays: its place in the draft, or for a new token a number behind those.
        token: its id.
        source: its place in the draft; for a new token the place of the one that it replaces, `NEW` where it was
            inserted.
        is_new: an edit has put it there.
    """

    key: int
    token: int
    source: int
    is_new: bool


def pieces_of(draft: Draft) -> list[Piece]:
    """The canvas before any edit."""
    return [Piece(place, token, place, is_new=False) for place, token in enumerate(draft.ids)]


def texts(pieces: Sequence[Piece], draft: Draft, decode: Decode) -> list[str]:
    """The text of each piece; of tokens that are one character together the first one has all of it."""
    kept = _kept(pieces, draft)
    out: list[str] = []
    for is_kept, group in groupby(range(len(pieces)), key=kept.__getitem__):
        run = [pieces[place] for place in group]
        out += _original(run, draft) if is_kept else _decoded(run, out, pieces, decode, draft)
    return out


def _kept(pieces: Sequence[Piece], draft: Draft) -> list[bool]:
    """Which pieces are the draft's own characters: untouched, and so are all tokens of the same character."""
    untouched = {piece.source for piece in pieces if not piece.is_new}
    return [not piece.is_new and all(place in untouched for place in _group(piece.source, draft)) for piece in pieces]


def _group(place: int, draft: Draft) -> range:
    """The places of the tokens that share characters with this one."""
    first = last = place
    spans = draft.spans
    while first > 0 and spans[first - 1].stop > spans[first].start:
        first -= 1
    while last + 1 < len(spans) and spans[last].stop > spans[last + 1].start:
        last += 1
    return range(first, last + 1)


def _original(run: Sequence[Piece], draft: Draft) -> Iterator[str]:
    for piece in run:
        group = _group(piece.source, draft)
        is_first = piece.source == group[0]
        span = draft.spans[piece.source]
        stop = draft.spans[group[-1]].stop
        yield draft.text[span.start : stop] + draft.behind(group[-1]) if is_first else ""


def _decoded(
    run: Sequence[Piece], before: Sequence[str], pieces: Sequence[Piece], decode: Decode, draft: Draft
) -> Iterator[str]:
    """The texts of new tokens, each with what stood behind the token that it replaces."""
    lead = [pieces[len(before) - 1].token] if before else []
    ids = [piece.token for piece in run]
    ends = [decode(lead)] if lead else [""]
    ends += [decode(lead + ids[: count + 1]) for count in range(len(ids))]
    whole = ends[-1]
    if not all(whole.startswith(each) for each in ends):
        ends = [ends[0] if whole.startswith(ends[0]) else "", *[whole] * len(ids)]
    for count, piece in enumerate(run):
        behind = draft.behind(piece.source) if piece.source != NEW else ""
        yield whole[len(ends[count]) : len(ends[count + 1])] + behind
