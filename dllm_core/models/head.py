"""The vocabulary head over the rows that are needed, and what those rows cost without their logits ever being whole.

At 126,464 tokens the logits of one text of 4,096 tokens take 2 GB, and a loss makes several tensors of that size. Here
the head and the cross-entropy run together, piece by piece: over slices of the vocabulary for a plain linear head,
over chunks of rows for any other. Nothing of size V outlives its piece; the backward pass computes it again.

Everything happens in hooks on the head, so that the model's own forward is called exactly once: DDP, FSDP, ZeRO, PEFT
and compile wrap that forward, and gather the head's weights around the head's own call.

Shapes: B batch, L length, K positions asked for per row, N rows in all, H hidden, V vocabulary, C of one piece.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

Select = Callable[[Tensor], Tensor]
"""Picks the rows that the head projects: (B, L, H) -> (B, K, H), or (1, N, H)."""

PIECE_ELEMENTS = {"cpu": 2**20, "cuda": 2**27}  # logits at a time: what a cache holds, and what keeps a GPU busy
FEWEST_COLUMNS = 256  # of a slice of the vocabulary: below that the matrix products starve
UNKNOWN_VOCABULARY = 2**17  # of a head that shows no weight
KERNEL_DEVICES = ("cuda",)  # where cut-cross-entropy runs


def rows_asked_for(
    at: Tensor | None, input_ids: Tensor, position_ids: Tensor | None, *, logits_are_shifted: bool
) -> Select | None:
    """What picks the hidden states whose projections score the positions asked for; None: all of them.

    Args:
        at: int64 (B, K), bool (B, L) or None, as of `Denoiser.logits`.
        input_ids: (B, L) int64.
        position_ids: (B, L) int64; where it is 0 a text begins.
        logits_are_shifted: row i of the model scores position i + 1.
    """
    if at is None and not logits_are_shifted:
        return None
    if at is not None and at.dtype == torch.bool:
        row, position = at.nonzero(as_tuple=True)  # (N,), (N,)
        if logits_are_shifted:
            position = _position_before(input_ids, position_ids)[row, position]
        return lambda hidden: hidden[row, position][None]  # (1, N, H)
    if logits_are_shifted:
        before = _position_before(input_ids, position_ids)
        at = before if at is None else before.gather(1, at)
    index = at[..., None]
    return lambda hidden: hidden.gather(1, index.expand(-1, -1, hidden.shape[-1]))  # (B, K, H)


def _position_before(input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
    """The column whose shifted logits score each position: one to the left; what begins a text keeps its own. (B, L)"""
    columns = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    follows = columns if position_ids is None else position_ids
    return torch.where(follows > 0, columns - 1, columns).clamp(min=0)


@contextmanager
def rows_projected(head: nn.Module, select: Select | None) -> Iterator[None]:
    """While it lasts the head projects the selected rows only, for the thread that entered."""
    if select is None:
        yield
        return
    thread = threading.get_ident()

    def before(_: nn.Module, inputs: tuple) -> tuple | None:
        return (select(inputs[0]), *inputs[1:]) if threading.get_ident() == thread else None

    handle = head.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def rows_scored(head: nn.Module, select: Select, targets: Tensor) -> Iterator[None]:
    """While it lasts the head gives -log p of the targets in place of logits, (1, N, 1), for the thread that entered.

    The head's own call goes over no rows: it is there for the hooks around it. The rows are scored before the hooks
    that follow it, so sharded weights are whole, and the hooks that make them whole for the backward pass see the
    output that the loss is made of.

    Args:
        select: (B, L, H) -> (1, N, H).
        targets: (N,) int64.
    """
    thread = threading.get_ident()
    waiting: list[Tensor] = []

    def before(_: nn.Module, inputs: tuple) -> tuple | None:
        if threading.get_ident() != thread:
            return None
        waiting.append(select(inputs[0])[0])
        return (waiting[-1][None, :0], *inputs[1:])

    def after(_: nn.Module, inputs: tuple, logits: Tensor) -> Tensor | None:
        if threading.get_ident() != thread:
            return None
        nll = score(head, waiting.pop(), targets)
        return nll.reshape(1, -1, 1).clone()  # not a view: FSDP hangs its hook on this tensor

    handles = [head.register_forward_pre_hook(before), head.register_forward_hook(after, prepend=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of the targets (N,) under logits (N, V); (N,) float32, or float64 where the logits are.

    bfloat16 holds 8 bits: a softmax over thousands of terms in it loses the small losses altogether.
    """
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")


def score(head: nn.Module, rows: Tensor, targets: Tensor) -> Tensor:
    """-log p of the targets (N,) under the head's logits of the rows (N, H); (N,), as of `token_nll`.

    No tensor of N x V elements is made, in the backward pass neither (but by a head of several layers whose weights
    ZeRO-3 or FSDP spread one by one: that is called once).
    """
    if len(rows) and _is_plain(head):
        return _score_linear(rows, head.weight, head.bias, targets)
    # No rows go through the head as one empty chunk: DDP waits for its weights' gradients, though they are zero.
    count = rows_of_a_chunk(head, rows)
    parts = []
    for some, wanted in zip(rows.split(count), targets.split(count), strict=True):
        parts.append(checkpoint(_score_chunk, head, some, wanted, use_reentrant=False))
    return torch.cat(parts)


def _score_chunk(head: nn.Module, rows: Tensor, targets: Tensor) -> Tensor:
    return token_nll(head.forward(rows), targets)


def _is_plain(head: nn.Module) -> bool:
    """Whether the head's logits are nothing but ``rows @ weight.T + bias``, with a whole weight in this process."""
    return type(head) is nn.Linear and "forward" not in vars(head) and not isinstance(head.weight, DTensor)


def rows_of_a_chunk(head: nn.Module, rows: Tensor) -> int:
    """How many of the rows (N, H) a head projects at one time, within its own call."""
    if _gathers_by_parts(
        head
    ):  # at every call: processes with different N must not call it a different number of times
        return max(1, len(rows))
    vocabulary = head.weight.shape[0] if hasattr(head, "weight") else UNKNOWN_VOCABULARY
    return max(1, _piece_elements(rows) // vocabulary)


def _gathers_by_parts(head: nn.Module) -> bool:
    """Whether layers within the head (LoRA's) gather weights that ZeRO-3 or FSDP spread over processes."""
    parts = list(head.modules())[1:]
    spread = any(hasattr(weight, "ds_id") for part in parts for weight in part.parameters(recurse=False))
    return spread or any(isinstance(part, FSDPModule) for part in parts)


def _piece_elements(rows: Tensor) -> int:
    return PIECE_ELEMENTS.get(rows.device.type, PIECE_ELEMENTS["cuda"])


def _score_linear(rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        rows, weight, bias = (None if each is None else each.to(dtype) for each in (rows, weight, bias))
    with torch.autocast(device, enabled=False):
        kernel = _cut_cross_entropy() if device in KERNEL_DEVICES and rows.dtype.itemsize == 2 else None
        if kernel is not None:  # the exact variant: the default one leaves small gradients out
            return kernel(rows, weight, targets, bias=bias, reduction="none", impl="cce_exact").float()
        return _LinearNLL.apply(rows, weight, bias, targets)


def _cut_cross_entropy() -> Callable[..., Tensor] | None:
    """``linear_cross_entropy`` of the package cut-cross-entropy where it is installed.

    Source: Cut Your Losses in Large-Vocabulary Language Models, arXiv 2411.09009; github.com/apple/ml-cross-entropy.
    """
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError:
        return None
    return linear_cross_entropy


class _LinearNLL(torch.autograd.Function):
    """-log softmax(rows @ weight.T + bias)[targets], over slices of the vocabulary.

    A slice of the weight meets all rows, so its gradient is written once, in one product: chunks of rows would add up
    a gradient of the whole weight chunk by chunk, slowly, and in bfloat16 with rounding.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        high = torch.promote_types(rows.dtype, torch.float32)
        total = torch.full(targets.shape, -torch.inf, dtype=high, device=rows.device)  # (N,) log of the normalizer
        chosen = torch.zeros_like(total)  # (N,) logits of the targets
        for start, stop in _slices(rows, weight):
            logits = _logits(rows, weight, bias, start, stop)  # (N, C)
            inside, place = _places(targets, start, stop)
            chosen = torch.where(inside, logits.gather(1, place[:, None])[:, 0], chosen)
            highest = logits.amax(1).clamp(min=torch.finfo(high).min)  # finite, where a whole slice is at -inf
            total = torch.logaddexp(total, logits.sub_(highest[:, None]).exp_().sum(1).log_().add_(highest))
        ctx.save_for_backward(rows, weight, bias, targets, total)
        return total - chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, targets, total = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_rows = torch.zeros(rows.shape, dtype=total.dtype, device=rows.device) if wanted[0] else None
        of_weight = torch.empty_like(weight) if wanted[1] else None
        of_bias = None if bias is None or not wanted[2] else torch.empty_like(bias)
        for start, stop in _slices(rows, weight):
            # d nll / d logits = softmax - one-hot
            error = _logits(rows, weight, bias, start, stop).sub_(total[:, None]).exp_()  # (N, C)
            inside, place = _places(targets, start, stop)
            error.scatter_add_(1, place[:, None], -inside[:, None].to(error.dtype)).mul_(gradient[:, None])
            if of_bias is not None:
                of_bias[start:stop] = error.sum(0)
            error = error.to(rows.dtype)
            if of_rows is not None:
                of_rows += error @ weight[start:stop]
            if of_weight is not None:
                of_weight[start:stop] = error.T @ rows
        return None if of_rows is None else of_rows.to(rows.dtype), of_weight, of_bias, None


def _slices(rows: Tensor, weight: Tensor) -> Iterator[tuple[int, int]]:
    """Begin and end of the slices of the vocabulary, none wider than what a piece may hold."""
    vocabulary = weight.shape[0]
    width = max(FEWEST_COLUMNS, _piece_elements(rows) // len(rows))
    for start in range(0, vocabulary, width):
        yield start, min(start + width, vocabulary)


def _logits(rows: Tensor, weight: Tensor, bias: Tensor | None, start: int, stop: int) -> Tensor:
    """(N, C) in float32 at least, a tensor of its own."""
    logits = F.linear(rows, weight[start:stop], None if bias is None else bias[start:stop])
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _places(targets: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Which targets (N,) lie in the slice, and where; those that do not have some place in it."""
    return (targets >= start) & (targets < stop), (targets - start).clamp(0, stop - start - 1)
