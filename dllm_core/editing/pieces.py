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


def texts(pieces: Sequence[Piece], draft: Draft, decode: Decode, fixed: Sequence[str]) -> tuple[list[str], str]:
    """The text of each piece, and what stands behind the last; of tokens that are one character together the first
    has all of it.

    The blanks in front of a token that no token stands for go where that goes, but for those that must stay.

    Args:
        fixed: for each token of the draft what of the characters in front of it stays even if the token goes.
    """
    bare = _without_leads(pieces, draft, decode)
    present = {piece.source for piece in pieces}
    out, place = [], 0  # the first token of the draft of whose lead nothing was said
    for piece, text in zip(pieces, bare, strict=True):
        if piece.source == NEW:
            goes = place < len(fixed) and place not in present
            out.append((fixed[place] if goes else "") + text)
            place += goes
            continue
        lead = draft.text[slice(*draft.lead(piece.source))] if piece.source >= place else ""
        own = text.lstrip(" ") if piece.is_new and (lead or _had_no_blank(piece, draft, decode)) else text
        out.append("".join(fixed[place : piece.source]) + lead + own)
        place = max(place, piece.source + 1)
    return _apart(pieces, out, decode), "".join(fixed[place:]) + draft.tail


def _had_no_blank(piece: Piece, draft: Draft, decode: Decode) -> bool:
    """Whether nothing stood in front of the token that was replaced, though the tokenizer writes a blank there."""
    old = draft.ids[piece.source]
    writes_blank = decode([old, old]).startswith(decode([old]) + " ")
    return writes_blank and not draft.text[draft.spans[piece.source].start :].startswith(" ")


def _without_leads(pieces: Sequence[Piece], draft: Draft, decode: Decode) -> list[str]:
    kept = _kept(pieces, draft)
    out: list[str] = []
    for is_kept, group in groupby(range(len(pieces)), key=kept.__getitem__):
        run = [pieces[place] for place in group]
        out += _original(run, draft) if is_kept else _decoded(run, len(out), pieces, decode)
    return out


def _apart(pieces: Sequence[Piece], own: list[str], decode: Decode) -> list[str]:
    """A blank between a new word and an old one behind it, where the tokenizer writes one."""
    for place in range(len(pieces) - 1):
        one, other = pieces[place], pieces[place + 1]
        if not one.is_new or other.is_new or not (own[place][-1:].isalnum() and own[place + 1][:1].isalnum()):
            continue
        if decode([one.token, other.token]).startswith(decode([one.token]) + " "):
            own[place] += " "
    return own


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
        stop = draft.spans[group[-1]].stop
        yield draft.text[draft.spans[piece.source].start : stop] if piece.source == group[0] else ""


def _decoded(run: Sequence[Piece], begin: int, pieces: Sequence[Piece], decode: Decode) -> Iterator[str]:
    """The texts of new tokens, behind the token in front of them: a blank may depend on that."""
    lead = [pieces[begin - 1].token] if begin else []
    ids = [piece.token for piece in run]
    ends = [decode(lead)] if lead else [""]
    ends += [decode(lead + ids[: count + 1]) for count in range(len(ids))]
    whole = ends[-1]
    if not all(whole.startswith(each) for each in ends):
        ends = [ends[0] if whole.startswith(ends[0]) else "", *[whole] * len(ids)]
    for count in range(len(run)):
        yield whole[len(ends[count]) : len(ends[count + 1])]
