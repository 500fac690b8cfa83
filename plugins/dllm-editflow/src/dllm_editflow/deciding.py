"""What one pass of the model leads to: its rates, the edits that fire, and the tokens that they write.

All of it happens inside the model's own forward, where the rows that fire, and only those, meet the vocabulary heads.

Shapes: R rows, L tokens, N edits, S substitutions, D deletions, I insertions, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm_core.models.head import rows_of_a_chunk
from dllm_core.noise.counter import uniform
from dllm_core.samplers.options import MaskedOptions
from dllm_core.samplers.proposals import Draws, guided, propose
from dllm_editflow.apply import Edits, Rows
from dllm_editflow.choosing import INSERT_TOKEN, SUBSTITUTE_TOKEN, Chosen, keep_best
from dllm_editflow.kinds import DELETE, INSERT, SUBSTITUTE
from dllm_editflow.models.heads import EditStates
from dllm_editflow.options import EditFlowOptions

LOWEST_RATE = 1e-12  # under the logarithm of guidance
NONE = -1  # in the log: no token


class Decision(NamedTuple):
    """What is done, and why.

    Args:
        edits: what happens to each token.
        chosen: what fired, and when.
        expected: (R,) float64, the sum of the allowed rates: edits that are still to be made.
        log: (N, 7) float64: kind, row, position, place in the draft, old token, new token, probability.
        logit_rows: rows projected through the vocabulary heads.
    """

    edits: Edits
    chosen: Chosen
    expected: Tensor
    log: Tensor
    logit_rows: int


@dataclass(frozen=True)
class Limits:
    """How much a row may change: (R,) edits that are left, None: any number; (R,) the most tokens, None: never met."""

    edits: Tensor | None
    tokens: Tensor | None


@dataclass(frozen=True)
class Decide:
    """A reader of `dllm_editflow.reading.read_edits`.

    Args:
        rows: the rows that are asked about; a guided model is asked twice, the second time without condition.
        choose: which edits fire, of the allowed rates (R, L, 3).
        keys: (R,) int64, of the noise.
        banned: ids that are never written.
        mask_token_id: a mask never stays as it is.
    """

    rows: Rows
    choose: Callable[[Tensor], Chosen]
    options: EditFlowOptions
    keys: Tensor
    banned: tuple[int, ...]
    mask_token_id: int
    limits: Limits

    def __call__(self, states: EditStates) -> Decision:
        rates = allowed_rates(states.rates, self.rows, self.options, self.mask_token_id)  # (R, L, 3)
        chosen = within_limits(self.choose(rates), rates, self.rows.lengths, self.limits)
        substitute = (chosen.change == SUBSTITUTE).nonzero()  # (S, 2)
        delete, insert = (chosen.change == DELETE).nonzero(), chosen.insert.nonzero()  # (D, 2), (I, 2)
        written = [
            self._tokens(states.substitute, states.substitute_hidden, substitute, chosen, SUBSTITUTE_TOKEN),
            self._tokens(states.insert, states.insert_hidden, insert, chosen, INSERT_TOKEN),
        ]
        log = torch.cat(
            [
                self._entries(SUBSTITUTE, substitute, rates, *written[0]),
                self._entries(DELETE, delete, rates, None, None),
                self._entries(INSERT, insert, rates, *written[1]),
            ]
        )
        projected = (len(substitute) + len(insert)) * (2 if self.options.guidance_scale > 0 else 1)
        return Decision(laid_out(chosen, log), chosen, rates.sum((1, 2)), log, projected)

    def _tokens(
        self, head: nn.Module, hidden: Tensor, where: Tensor, chosen: Chosen, purpose: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens and their probabilities at the places ``where`` (N, 2), each (N,); a piece of the places at a time."""
        if not len(where):
            return where[:, 0], where[:, 0].double()
        pieces = where.split(rows_of_a_chunk(head, hidden.flatten(0, 1)))
        found = [self._tokens_of_piece(head, hidden, piece, chosen, purpose) for piece in pieces]
        tokens, shares = (torch.cat(each) for each in zip(*found, strict=True))
        return tokens, shares

    def _tokens_of_piece(
        self, head: nn.Module, hidden: Tensor, where: Tensor, chosen: Chosen, purpose: int
    ) -> tuple[Tensor, Tensor]:
        """As of `_tokens`; logits of these places are whole."""
        row, position = where.unbind(1)
        logits = head(hidden[row, position]).float()  # (N, V)
        if self.options.guidance_scale > 0:
            free = head(hidden[row + len(self.rows.lengths), position])
            logits = guided(logits.log_softmax(-1), free.float().log_softmax(-1), self.options.guidance_scale)
        if purpose == SUBSTITUTE_TOKEN and not self.options.own_token:
            logits = logits.scatter(1, self.rows.input_ids[row, position][:, None], -torch.inf)
        draws = uniform(self.keys[row], purpose, 0, chosen.at[row], position)  # (N,)
        return choose_tokens(logits, self.banned, self.mask_token_id, self.options, draws)

    def _entries(self, kind: int, where: Tensor, rates: Tensor, tokens: Tensor | None, shares: Tensor | None) -> Tensor:
        """The log of the edits of one kind, (N, 7)."""
        row, position = where.unbind(1)
        old = torch.full_like(row, NONE) if kind == INSERT else self.rows.input_ids[row, position]
        probability = rates[row, position, kind].clamp(max=1)
        probability = probability if shares is None else probability * shares
        new = torch.full_like(row, NONE) if tokens is None else tokens
        whole = (torch.full_like(row, kind), row, position, self.rows.source[row, position], old, new)
        return torch.stack([*(each.double() for each in whole), probability.double()], 1)


def laid_out(chosen: Chosen, log: Tensor) -> Edits:
    """The edits of the log (N, 7) at their places."""
    kind, row, position, _, _, new = log[:, :6].long().unbind(1)
    places = (row, position, (kind == INSERT).long())
    tokens = torch.zeros(*chosen.change.shape, 2, dtype=torch.int64, device=log.device)  # (R, L, 2)
    surety = torch.full(tokens.shape, torch.nan, device=log.device)
    tokens[places], surety[places] = new.clamp(min=0), log[:, 6].float()
    return Edits(chosen.change, chosen.insert, tokens, surety)


def allowed_rates(rates: Tensor, rows: Rows, options: EditFlowOptions, mask_token_id: int) -> Tensor:
    """The rates of what may be done, 0 elsewhere. (R or 2R, L, 3) -> (R, L, 3) float64

    The first token is never deleted: something must stand before what is inserted. A mask is nobody's text, so it
    leaves in one way or the other: the rates of its two edits, which the optimum has add up to 1, are made to.
    """
    rates = rates.double()
    if options.guidance_scale > 0:
        with_, without = rates.clamp(min=LOWEST_RATE).log().chunk(2)
        rates = guided(with_, without, options.guidance_scale).double().exp()
    real = rows.real
    free = real & ~rows.locked
    deletable = free.clone()
    deletable[:, 0] = False
    rates = rates * torch.stack([free, deletable, real & rows.gaps], -1)
    return _leaving(rates, (rows.input_ids == mask_token_id) & free) if options.grid == "kappa" else rates


def _leaving(rates: Tensor, masks: Tensor) -> Tensor:
    both = rates[..., : DELETE + 1]
    total = both.sum(-1, keepdim=True)
    shares = both / total.clamp(min=LOWEST_RATE)
    shares[..., SUBSTITUTE] += total[..., 0] == 0
    return torch.cat([shares.where(masks[..., None], both), rates[..., INSERT:]], -1)


def within_limits(chosen: Chosen, rates: Tensor, lengths: Tensor, limits: Limits) -> Chosen:
    """What fires, cut down to what a row may still change and to how long it may grow."""
    if limits.edits is not None:
        chosen = keep_best(chosen, rates, limits.edits, insertions_only=False)
    if limits.tokens is not None:
        room = limits.tokens - lengths + (chosen.change == DELETE).sum(1)
        chosen = keep_best(chosen, rates, room.clamp(min=0), insertions_only=True)
    return chosen


def choose_tokens(
    logits: Tensor, banned: tuple[int, ...], mask_token_id: int, options: EditFlowOptions, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """One token for each row of logits (N, V), and its probability among those that may be written; (N,) each."""
    shared = MaskedOptions(
        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, suppress_tokens=banned
    )
    draw = draws[None] if options.temperature > 0 else None
    proposal = propose(logits[None], mask_token_id, shared, Draws(draw, None, None))
    return proposal.tokens[0], proposal.confidence[0].double()
