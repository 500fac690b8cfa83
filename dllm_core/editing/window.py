"""Which lines of a long text a model sees: those that are to change, and as many around them as fit."""

from __future__ import annotations

from collections.abc import Sequence

from dllm_core.editing.draft import Draft, Span, line_of, line_starts
from dllm_core.errors import PromptError

ROOM = 0.25  # share of the context that is left for insertions


def window_of(draft: Draft, regions: Sequence[Span], *, taken: int, context: int) -> Span:
    """The characters of whole lines around the regions.

    Args:
        regions: what may change; none: the window begins with the text.
        taken: tokens that stand in front of the text.
        context: tokens that the model reads.

    Raises:
        PromptError: the regions alone are too long.
    """
    starts = line_starts(draft.text)
    counts = [0] * len(starts)
    for span in draft.spans:
        counts[line_of(starts, span.start) - 1] += 1
    most = int((context - taken) * (1 - ROOM))
    first = line_of(starts, min((each.start for each in regions), default=0)) - 1
    last = line_of(starts, max((max(each.start, each.stop - 1) for each in regions), default=0))
    if sum(counts[first:last]) > most:
        raise PromptError(
            f"lines {first + 1}:{last} are {sum(counts[first:last])} tokens long, and the model reads {context}, with "
            f"room for {most} of a text; name fewer lines with --lines"
        )
    first, last = _grown(counts, first, last, most)
    return Span(starts[first], starts[last] if last < len(starts) else len(draft.text))


def _grown(counts: Sequence[int], first: int, last: int, most: int) -> tuple[int, int]:
    """Lines `first` to before `last`, with a line before and a line behind in turn, as long as they fit."""
    grows = True
    while grows:
        grows = False
        for more_before, more_behind in ((1, 0), (0, 1)):
            begin, end = first - more_before, last + more_behind
            if begin >= 0 and end <= len(counts) and sum(counts[begin:end]) <= most:
                first, last, grows = begin, end, True
    return first, last
