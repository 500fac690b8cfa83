"""From what the rate head gives to rates, and where training starts.

The rates leave out the factor w(t) = kappa'(t) / (1 - kappa(t)) of the process. Learned so, their optimum does not grow
with the time: substituting and deleting a token have the probabilities that this is still to be done, inserting behind
it the expected number of tokens that are missing there.

Shapes: ... any leading dimensions; the three columns are SUBSTITUTE, DELETE, INSERT.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PRIOR = (0.02, 0.02, 0.01)
"""Edits of each kind a token before training, 5% in all: most tokens of a draft are right. A softplus of 0 is 69% for
each kind, and a first sample from such a model rewrites the text."""


def rates_from(scores: Tensor, form: str) -> Tensor:
    """Rates (..., 3) in float32, at least 0, from the head's scores (..., 3).

    Args:
        form: ``"softplus"`` or ``"hazard"``, see `HeadOptions`.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if form == "softplus":
        return F.softplus(scores)
    keep = torch.zeros_like(scores[..., :1])
    shares = torch.cat([scores[..., :2], keep], -1).softmax(-1)  # substitute, delete, keep
    return torch.cat([shares[..., :2], F.softplus(scores[..., 2:])], -1)


def prior_scores(form: str) -> tuple[float, float, float]:
    """The scores from which `rates_from` makes `PRIOR`."""
    substitute, delete, insert = PRIOR
    if form == "softplus":
        return _before_softplus(substitute), _before_softplus(delete), _before_softplus(insert)
    keep = 1 - substitute - delete
    return math.log(substitute / keep), math.log(delete / keep), _before_softplus(insert)


def _before_softplus(value: float) -> float:
    return math.log(math.expm1(value))
