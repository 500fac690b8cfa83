"""What a training step asks of a model: all rates, and how probable the tokens of the remaining edits are.

Only tokens at which an edit is to be made meet a vocabulary head, each once however many tokens are missing behind it,
and a piece at a time: no tensor of rows times vocabulary is whole, in the backward pass neither. Where substitutions
and insertions share one projection, they are projected together.

Shapes: B batch, L tokens, S substitutions, I insertions, U rows projected, T tokens scored, V vocabulary, H hidden.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dllm_core.models.head import rows_of_a_chunk
from dllm_editflow.columns import Remaining
from dllm_editflow.reading import read_edits

if TYPE_CHECKING:
    from dllm_core.models.denoiser import Denoiser
    from dllm_editflow.models.heads import EditStates

ANY = -1  # as a row's own token: none is left out


class EditScores(NamedTuple):
    """Rates (B, L, 3) without the factor w(t), and each text's -log p of its edits' tokens, weighed, (B,)."""

    rates: Tensor
    nll: Tensor


class Wanted(NamedTuple):
    """Rows to project and what to score there.

    Args:
        hidden: (U, H) float.
        own: (U,) int64, the token that stands there and may not be chosen, or `ANY`.
        owners: (T,) int64, increasing: the row of each token to score.
        targets: (T,) int64.
    """

    hidden: Tensor
    own: Tensor
    owners: Tensor
    targets: Tensor


class ScoreEdits:
    """Reads a model's states.

    Args:
        left: the edits to score.
        own: (B, L) int64, the tokens that stand there now, which no substitution may choose; None: it may.
    """

    def __init__(self, left: Remaining, own: Tensor | None) -> None:
        self.left = left
        self.own = own

    def read(self, denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor, time: Tensor) -> EditScores:
        """The scores of a batch, in one forward pass of the model."""
        return read_edits(denoiser, input_ids, attention_mask, time=time, reader=self)

    def __call__(self, states: EditStates) -> EditScores:
        left = self.left
        wanted = [self._substitutions(states), self._insertions(states)]
        if states.insert is states.substitute:
            nll = score_rows(states.substitute, joined(*wanted))  # (S + I,)
        else:
            nll = torch.cat(
                [score_rows(*each) for each in zip((states.substitute, states.insert), wanted, strict=True)]
            )
        texts = torch.cat([left.substitutions.nonzero()[:, 0], left.insertions[:, 0]])  # (S + I,)
        weights = torch.cat([left.substitution_weights, left.insertion_weights])
        weighed = nll * weights
        return EditScores(states.rates, weighed.new_zeros(len(left.counts)).index_add(0, texts, weighed))

    def _substitutions(self, states: EditStates) -> Wanted:
        where = self.left.substitutions
        targets = self.left.substitution_targets
        own = torch.full_like(targets, ANY) if self.own is None else self.own[where]
        return Wanted(states.substitute_hidden[where], own, torch.arange(len(targets), device=own.device), targets)

    def _insertions(self, states: EditStates) -> Wanted:
        length = states.insert_hidden.shape[1]
        places = self.left.insertions[:, 0] * length + self.left.insertions[:, 1]
        rows, owners = torch.unique_consecutive(places, return_inverse=True)  # (U,), (I,)
        hidden = states.insert_hidden.flatten(0, 1)[rows]
        return Wanted(hidden, torch.full_like(rows, ANY), owners, self.left.insertion_targets)


def joined(first: Wanted, second: Wanted) -> Wanted:
    """The rows and tokens of both, in that order."""
    owners = torch.cat([first.owners, second.owners + len(first.hidden)])
    hidden, own, targets = (
        torch.cat(pair) for pair in ((first[0], second[0]), (first[1], second[1]), (first[3], second[3]))
    )
    return Wanted(hidden, own, owners, targets)


def score_rows(head: nn.Module, wanted: Wanted) -> Tensor:
    """-log p of the tokens to score (T,), float32.

    The head is called once, on no rows, also where there are none to score, and the pieces are scored within that call.
    Where weights are spread over processes they are gathered around a call, in all processes or in none; these have
    different numbers of rows. See `dllm_core.models.head.rows_scored`.
    """
    thread = threading.get_ident()
    waiting: list[Tensor] = []

    def before(_: nn.Module, inputs: tuple) -> tuple | None:
        if threading.get_ident() != thread:
            return None
        waiting.append(inputs[0])
        return (inputs[0][:0],)

    def after(own: nn.Module, _: tuple, logits: Tensor) -> Tensor | None:
        if threading.get_ident() != thread:
            return None
        return _in_pieces(own, wanted._replace(hidden=waiting.pop()))

    handles = [head.register_forward_pre_hook(before), head.register_forward_hook(after, prepend=True)]
    try:
        return head(wanted.hidden)
    finally:
        for handle in handles:
            handle.remove()


def _in_pieces(head: nn.Module, wanted: Wanted) -> Tensor:
    """As of `score_rows`."""
    count = rows_of_a_chunk(head, wanted.hidden)
    edges = torch.arange(0, max(1, len(wanted.hidden)), count, device=wanted.owners.device)
    splits = torch.searchsorted(wanted.owners, edges)[1:].tolist()
    pieces = (wanted.hidden.split(count), wanted.own.split(count))
    tokens = (side.tensor_split(splits) for side in (wanted.owners, wanted.targets))
    scored = [
        checkpoint(_piece, head, hidden, own, owners - number * count, targets, use_reentrant=False)
        for number, (hidden, own, owners, targets) in enumerate(zip(*pieces, *tokens, strict=True))
    ]
    return torch.cat(scored)


def _piece(head: nn.Module, hidden: Tensor, own: Tensor, owners: Tensor, targets: Tensor) -> Tensor:
    logits = head.forward(hidden)  # (U, V)
    left_out = (own != ANY)[:, None] & (torch.arange(logits.shape[1], device=own.device) == own[:, None])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(left_out, -torch.inf)
    return logits.logsumexp(1)[owners] - logits[owners, targets]
