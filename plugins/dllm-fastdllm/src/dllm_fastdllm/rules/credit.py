"""Commit what is sure once the steps before are given credit.

Shapes: B rows, M open positions, K places of the block, S tokens remembered a position, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm_core.config import at_least, within
from dllm_core.samplers import BlockSize
from dllm_fastdllm.rules.threshold import Threshold

TOKENS = 64  # remembered a position; with the published decay the 65th has less than a millionth of its credit left


@dataclass(frozen=True)
class Account:
    """What `Credit` knows of a block; place K takes what is written for filler.

    Args:
        tokens: (B, K + 1, S) int64, best tokens of earlier steps, each once; -1 where there is none.
        credit: (B, K + 1, S) float32, what each has gathered.
        mask_token_id: it is given no credit, because it cannot be written.
    """

    tokens: torch.Tensor
    credit: torch.Tensor
    mask_token_id: int


@dataclass(frozen=True, kw_only=True)
class Credit(Threshold):
    """`Threshold` on logits to which the tokens that led in earlier steps have their credit added.

    Each step the credits C of a position decay by ``credit_decay``, its most probable token, of probability p, gains
    p ** ``credit_power``, and the logits become logits + ``credit_weight`` * log(1 + C). A token that leads step after
    step passes the threshold earlier. The credits begin anew with each block.

    Args:
        threshold: on the confidence with credit, from 0 to 1.
        credit_weight: at least 0 (alpha); 0 gives no credit.
        credit_decay: from 0 to 1 (beta).
        credit_power: at least 0 (gamma); below 1 it lifts the credit of tokens that are not sure yet.

    Raises:
        OptionError: an option out of range.

    Source: CreditDecoding, arXiv:2510.06133; dInfer, arXiv:2510.08666.
    """

    needs: ClassVar[tuple[str, ...]] = ("history",)
    credit_weight: float = 0.7
    credit_decay: float = 0.8
    credit_power: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("credit_weight", self.credit_weight, 0)
        within("credit_decay", self.credit_decay, 0.0, 1.0)
        at_least("credit_power", self.credit_power, 0)

    def remember(self, size: BlockSize) -> Account:
        shape = size.rows, size.places + 1, min(size.places, TOKENS)
        return Account(
            tokens=torch.full(shape, -1, device=size.device),
            credit=torch.zeros(shape, device=size.device),
            mask_token_id=size.mask_token_id,
        )

    def weigh(self, logits: torch.Tensor, places: torch.Tensor, history: Account) -> torch.Tensor:
        logits = logits.float()
        wide = places[..., None].expand(-1, -1, history.tokens.shape[2])
        tokens, credit = history.tokens.gather(1, wide), history.credit.gather(1, wide)  # (B, M, S)
        tokens, credit = self._earn(logits, tokens, credit * self.credit_decay, history.mask_token_id)
        history.tokens.scatter_(1, wide, tokens)
        history.credit.scatter_(1, wide, credit)
        # Filler shares a place, so what is noted there is nobody's. A slot without a token adds log(1 + 0) to token 0.
        is_open = (places < history.tokens.shape[1] - 1)[..., None]
        return logits.scatter_add(2, tokens.clamp(min=0), self.credit_weight * credit.log1p().where(is_open, 0))

    def _earn(
        self, logits: torch.Tensor, tokens: torch.Tensor, credit: torch.Tensor, mask_token_id: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add to the credit of each position's best token; a new one takes the slot with the least. -> two (B, M, S)"""
        masked = torch.arange(logits.shape[-1], device=logits.device) == mask_token_id
        best, leader = logits.masked_fill(masked, -torch.inf).max(-1, keepdim=True)  # (B, M, 1)
        gain = (best - logits.logsumexp(-1, keepdim=True)).exp() ** self.credit_power
        known = tokens == leader
        is_known = known.any(-1, keepdim=True)
        slot = torch.where(is_known, known.long().argmax(-1, keepdim=True), credit.argmin(-1, keepdim=True))
        held = credit.gather(-1, slot).where(is_known, 0)
        return tokens.scatter(-1, slot, leader), credit.scatter(-1, slot, held + gain)
