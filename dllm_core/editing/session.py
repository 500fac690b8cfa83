"""Run a sampler that edits on a text, and follow what it does to each token.

Any sampler serves whose spec says that it edits: it has ``start_edit(rows, locked=, gaps=)`` and keeps, beside what
`Sampler.step` needs, ``state.operations``: for each row the edits so far, with ``kind``, ``position`` in the canvas
before their step, ``old``, ``new``, ``step``, ``time`` and ``probability``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dllm_core.editing.draft import LONE_LINE_FEED, PAIR, Draft, Span, has_pairs, line_of, line_starts
from dllm_core.editing.log import Edit, EditLog, LogStep, digest, hunks_between
from dllm_core.editing.pieces import NEW, Piece, pieces_of, texts
from dllm_core.errors import DllmError, PromptError

if TYPE_CHECKING:
    from dllm_core.models.denoiser import Denoiser
    from dllm_core.samplers.base import Sampler
    from dllm_core.samplers.output import SampleStats


class Operation(Protocol):
    """An edit as samplers note it; a token's own edit comes before what is inserted behind it."""

    kind: str
    position: int
    old: int | None
    new: int | None
    step: int
    time: float
    probability: float


@dataclass(frozen=True)
class Layout:
    """What a sampler is given.

    Args:
        prefix: tokens in front of the text, which never change.
        draft: the text that the model sees: all of it, or a window of whole lines.
        offset: of the window in the whole text, in characters.
        text: the whole text.
        locked: whether each token of the draft must stay.
        fixed: what of the characters in front of each token of the draft stays even if the token goes.
        outside: the stretches of the whole text that nothing may touch, in order; the first begins with the text and
            the last ends with it.
        gaps: whether something may be inserted behind each token of prefix and draft.
    """

    prefix: list[int]
    draft: Draft
    offset: int
    text: str
    locked: list[bool]
    gaps: list[bool]
    fixed: list[str]
    outside: list[str]

    @property
    def row(self) -> list[int]:
        return [*self.prefix, *self.draft.ids]

    @property
    def all_locked(self) -> list[bool]:
        return [True] * len(self.prefix) + self.locked


@dataclass(frozen=True)
class Edited:
    """What came of it.

    Args:
        text: the whole text, edited.
        log: of all edits.
        stats: of the run.
    """

    text: str
    log: EditLog
    stats: SampleStats


def lay_out(
    prefix: Sequence[int], draft: Draft, regions: Sequence[Span], protected: Sequence[Span], *, window: Span
) -> Layout:
    """Which tokens may change, and where something may be put in.

    A token may change that lies in a region as a whole and touches nothing protected. Something may be put in wherever
    a region reaches, its borders included, but not inside what is protected.

    Args:
        regions, protected: characters of the whole text.
        window: what of it the model sees; tokens that are not wholly in it are left out.

    Raises:
        PromptError: there is no token that may change, and no place to put one in.
    """
    inside = [
        place for place, span in enumerate(draft.spans) if window.start <= span.start and span.stop <= window.stop
    ]
    part, offset = draft.part(inside[0], inside[-1] + 1) if inside else (Draft("", [], []), window.start)
    spans = [Span(span.start + offset, span.stop + offset) for span in part.spans]

    def may_change(span: Span) -> bool:
        within = any(region.start <= span.start and span.stop <= region.stop for region in regions)
        return within and not any(span.start < each.stop and each.start < span.stop for each in protected)

    def may_follow(place: int) -> bool:
        within = any(region.start <= place <= region.stop for region in regions)
        return within and not any(each.start < place < each.stop for each in protected)

    locked = [not may_change(span) for span in spans]
    borders = [max(offset, window.start), *(span.stop for span in spans)]
    gaps = [False] * max(0, len(prefix) - 1) + [may_follow(border) for border in borders[0 if prefix else 1 :]]
    if all(locked) and not any(gaps):
        raise PromptError("nothing of this text may change; give other --lines, or protect less")
    free = _free(regions, protected)
    leads = [Span(offset + start, offset + stop) for start, stop in map(part.lead, range(len(part.ids)))]
    fixed = [_except(draft.text, lead, free) for lead in leads]
    borders = [0, *(border for span in free for border in span), len(draft.text)]
    outside = [draft.text[start:stop] for start, stop in zip(borders[::2], borders[1::2], strict=True)]
    return Layout(list(prefix), part, offset, draft.text, locked, gaps, fixed, outside)


def _free(regions: Sequence[Span], protected: Sequence[Span]) -> list[Span]:
    """What of the regions is not protected, in order, and each character once."""
    spans: list[Span] = []
    for start, stop in sorted(regions):
        at = max(start, spans[-1].stop) if spans else start
        for first, last in sorted(protected):
            if at <= first <= stop:
                spans.append(Span(at, first))
            at = max(at, min(last, stop)) if first < stop else at
        if at <= stop:  # at the end of what is protected something may be put in
            spans.append(Span(at, stop))
    return spans


def _except(text: str, span: Span, free: Sequence[Span]) -> str:
    return "".join(text[at] for at in range(*span) if not any(start <= at < stop for start, stop in free))


class EditSession:
    """One text under way.

    Args:
        sampler: one that edits.
        layout: of the text.
        about: for the log: model, sampler, options.
    """

    def __init__(self, sampler: Sampler, layout: Layout, about: Mapping[str, Any]) -> None:
        self.layout = layout
        self.sampler = sampler
        self.state = sampler.start_edit([layout.row], locked=[layout.all_locked], gaps=[layout.gaps])
        self.pieces = pieces_of(layout.draft)
        self._has_pairs = has_pairs(layout.text)
        self.texts, self._end = self._texts(self.pieces)
        self.log = EditLog(digest(layout.text), about=about)
        self.kinds: dict[int, str] = {}  # of the tokens that edits have put there, by key
        self._keys = len(self.pieces)
        self._gone: dict[int | None, list[str]] = {}  # taken out by the last step, by the key of what is before it
        self._noted = 0

    @property
    def finished(self) -> bool:
        return self.state.finished

    @property
    def text(self) -> str:
        """The whole text now."""
        whole, layout = self.layout.text, self.layout
        rest = whole[layout.offset + len(layout.draft.text) :]
        return whole[: layout.offset] + "".join(self.texts) + self._end + rest

    @property
    def made(self) -> int:
        """Edits so far."""
        return self._noted

    @property
    def marked(self) -> list[tuple[str, str]]:
        """What the model sees of the text, in parts: each with the kind of edit that it came by, or empty; what the
        last step took out stands where it was."""
        parts = [(text, "delete") for text in self._gone.get(None, ())]
        for piece, text in zip(self.pieces, self.texts, strict=True):
            parts.append((text, self.kinds.get(piece.key, "")))
            parts += [(gone, "delete") for gone in self._gone.get(piece.key, ())]
        return [*parts, (self._end, "")]

    def step(self) -> list[Edit]:
        """Take a step of the sampler and follow it; the edits that it made."""
        self.sampler.step(self.state)
        operations = self.state.operations[0][self._noted :]
        self._noted += len(operations)
        self._gone = {}
        return self._follow(operations) if operations else []

    def finish(self) -> Edited:
        """The edited text, once no step is left.

        Raises:
            DllmError: the sampler changed what it was told to leave.
        """
        output = self.sampler.finish(self.state)
        if not _holds(self.text, self.layout.outside):
            raise DllmError(
                f"sampler {type(self.sampler).__name__} changed text that it was told to leave, so nothing is written; "
                "tell whoever made its plugin"
            )
        self.log.after = digest(self.text)
        return Edited(self.text, self.log, output.stats)

    def _follow(self, operations: Sequence[Operation]) -> list[Edit]:
        before, old_texts, old_end, whole = self.pieces, self.texts, self._end, self.text
        self.pieces = list(self._moved(operations))
        self.texts, self._end = self._texts(self.pieces)
        self._gone = _taken_out(before, old_texts, self.pieces)
        start = self.layout.offset
        hunks = hunks_between(
            [*_keyed(before, old_texts), (NEW, old_end)], [*_keyed(self.pieces, self.texts), (NEW, self._end)], start
        )
        edits = list(self._told(operations, before, old_texts, line_starts(whole), start))
        self.log.steps.append(LogStep(operations[0].step, edits, hunks))
        return edits

    def _moved(self, operations: Sequence[Operation]) -> Iterator[Piece]:
        """The pieces after the operations of one step."""
        at: dict[int, list[Operation]] = {}
        for operation in operations:
            at.setdefault(operation.position - len(self.layout.prefix), []).append(operation)
        for place in range(-1, len(self.pieces)):
            own = self.pieces[place] if place >= 0 else None
            for operation in at.get(place, ()):
                if operation.kind != "insert":
                    own, source = None, self.pieces[place].source
                if operation.kind == "substitute":
                    own = self._new(operation, source)
            if own is not None:
                yield own
            for operation in at.get(place, ()):
                if operation.kind == "insert":
                    yield self._new(operation, NEW)

    def _new(self, operation: Operation, source: int) -> Piece:
        self._keys += 1
        self.kinds[self._keys] = operation.kind
        return Piece(self._keys, operation.new, source, is_new=True)

    def _told(
        self,
        operations: Sequence[Operation],
        pieces: Sequence[Piece],
        old: Sequence[str],
        starts: list[int],
        start: int,
    ) -> Iterator[Edit]:
        ends, place = [start], start
        for text in old:
            place += len(text)
            ends.append(place)
        for each in operations:
            own = each.position - len(self.layout.prefix)
            changes = each.kind != "insert" and own >= 0
            went = self._decode([pieces[own].token]) if changes else ""
            came = "" if each.new is None else self._decode([each.new])
            line = line_of(starts, ends[own] if changes else ends[own + 1])
            yield Edit(each.kind, line, went, came, round(each.probability, 4), round(each.time, 4))

    def _texts(self, pieces: Sequence[Piece]) -> tuple[list[str], str]:
        return texts(pieces, self.layout.draft, self._decode, self.layout.fixed)

    def _decode(self, ids: list[int]) -> str:
        text = self._denoiser.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return LONE_LINE_FEED.sub(PAIR, text) if self._has_pairs else text

    @property
    def _denoiser(self) -> Denoiser:
        return self.sampler.denoiser


def _holds(text: str, outside: Sequence[str]) -> bool:
    """Whether a text begins with the first stretch, ends with the last, and has all others between them, in order."""
    place = len(outside[0])
    if len(outside) == 1:
        return text == outside[0]
    if not text.startswith(outside[0]) or not text.endswith(outside[-1]):
        return False
    for stretch in outside[1:-1]:
        found = text.find(stretch, place)
        if found < 0:
            return False
        place = found + len(stretch)
    return place <= len(text) - len(outside[-1])


def _keyed(pieces: Sequence[Piece], own: Sequence[str]) -> list[tuple[int, str]]:
    return [(piece.key, text) for piece, text in zip(pieces, own, strict=True)]


def _taken_out(before: Sequence[Piece], old: Sequence[str], after: Sequence[Piece]) -> dict[int | None, list[str]]:
    """The texts of the pieces that are no longer there, by the key of the nearest piece before them that is."""
    still = {piece.key for piece in after}
    gone: dict[int | None, list[str]] = {}
    anchor = None
    for piece, text in zip(before, old, strict=True):
        if piece.key in still:
            anchor = piece.key
        else:
            gone.setdefault(anchor, []).append(text)
    return gone
