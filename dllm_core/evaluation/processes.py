"""Work shared out among the processes that `accelerate launch` or `torchrun` started.

Batches are laid out from all requests, by every process alike, and then dealt out whole. So a batch has the same rows
on one process and on many, and its answers are the same to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def rank_and_size() -> tuple[int, int]:
    """Number of this process and number of processes, as the launcher tells them."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ["RANK"]), size) if size > 1 else (0, 1)


def own_device(device: str) -> str:
    """The accelerator of this process, where ``auto`` leaves it open and every process has one of its own."""
    if device != "auto" or rank_and_size()[1] == 1 or not torch.cuda.is_available():
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def own_share(work: Sequence[T]) -> list[T]:
    """What of `work` this process does."""
    rank, size = rank_and_size()
    return list(work[rank::size])


def gathered(own: list[T]) -> list[T]:
    """Every process's list, one behind the other; waits for all of them."""
    size = rank_and_size()[1]
    if size == 1:
        return own
    if not dist.is_initialized():
        dist.init_process_group("gloo")  # answers are small and on the host; no accelerator is needed to pass them on
    lists: list[list[T]] = [[] for _ in range(size)]
    dist.all_gather_object(lists, own)
    return [each for part in lists for each in part]


def leave() -> None:
    """End the group of processes, which complains otherwise when the first one goes."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
