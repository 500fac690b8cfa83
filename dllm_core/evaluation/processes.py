"""Work shared out among the processes that `accelerate launch` or `torchrun` started.

Batches are laid out from all requests, by every process alike, and then dealt out whole. So a batch has the same rows
on one process and on many, and its answers are the same to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def rank_and_size() -> tuple[int, int]:
    """Number of this process and number of processes; starts the process group where there are several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes


def own_share(work: Sequence[T]) -> list[T]:
    """What of `work` this process does."""
    rank, size = rank_and_size()
    return list(work[rank::size])


def gathered(own: list[T]) -> list[T]:
    """Every process's list, one behind the other; waits for all of them."""
    if rank_and_size()[1] == 1:
        return own
    from accelerate.utils import gather_object

    return gather_object(own)
