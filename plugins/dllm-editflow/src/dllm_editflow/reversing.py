"""Steps of the reversed flow, which take back some of what has been done so that it can be done better.

The reversed flow turns a column that shows its target back to its source at the rate kappa' / kappa times the
probability that it has turned. From a draft that probability would have to be learned. Here it is known:

- From nothing every token of a completion was inserted, so every one has turned, and its reverse is a deletion: exact.
- From masks every token that is no mask has turned. One that took a mask's place becomes a mask again; one that was
  inserted is deleted. Exact where the flow only substitutes; where it inserts as well, the run's own history stands for
  the unknown column, and masks that were deleted do not come back.

Source: Havasi et al., "Edit Flows", arXiv:2506.09018, section 3 (reverse rates, divergence-free components).

Shapes: R rows, L tokens, N edits.
"""

from __future__ import annotations

import torch

from dllm_editflow.apply import KEPT, Rows
from dllm_editflow.choosing import Moment, turned_back
from dllm_editflow.deciding import NONE, Decision, laid_out
from dllm_editflow.grid import Move
from dllm_editflow.kinds import SUBSTITUTE
from dllm_editflow.operations import INSERTED
from dllm_editflow.state import EMPTY


def turn_back(rows: Rows, moment: Moment, move: Move, began_as: str, mask_token_id: int) -> Decision:
    """One step back, for which no model is asked."""
    free = rows.real & ~rows.locked
    inserted = free if began_as == EMPTY else rows.source == INSERTED
    chosen = turned_back(free & (rows.input_ids != mask_token_id), inserted, moment, move.factor)
    row, position = (chosen.change != KEPT).nonzero().unbind(1)  # (N,)
    kind, old = chosen.change[row, position], rows.input_ids[row, position]
    new = torch.where(kind == SUBSTITUTE, mask_token_id, NONE)
    whole = torch.stack([kind, row, position, rows.source[row, position], old, new], 1).double()
    log = torch.nn.functional.pad(whole, (0, 1), value=move.factor)  # (N, 7)
    unknown = torch.full_like(moment.clock, torch.nan)
    return Decision(laid_out(chosen, log), chosen, unknown, log, 0)
