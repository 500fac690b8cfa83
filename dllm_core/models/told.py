"""Says how far the reading and writing of weights is, which happens inside Hugging Face's calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

# The names of its bars, and what people are told in their place.
PHASES = {"Loading weights": "Loading weights", "Writing model shards": "Writing weights"}


@contextmanager
def weights_told(tell: Callable[[int, int | None, str], None]) -> Iterator[None]:
    """Inside the ``with`` block, tell of every tensor that is read and of every file that is written.

    It takes the place of Hugging Face's own bars for these two, whether those are shown or not; all others stay.

    Args:
        tell: is called with how many are done, of how many, and which of the two it is; None where it is one file,
            as nobody knows how much of it is written.
    """

    def watched(make: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        phase = PHASES.get(options.get("desc", ""))
        return make(*args, **options) if phase is None else _told(list(args[0]), tell, phase)

    before = logging.set_tqdm_hook(watched)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _told(items: Sequence[Any], tell: Callable[[int, int | None, str], None], phase: str) -> Iterator[Any]:
    """The items, with a word before the first and behind each."""
    total = len(items) if len(items) > 1 else None
    tell(0, total, phase)
    for done, item in enumerate(items, 1):
        yield item
        tell(done, total, phase)
