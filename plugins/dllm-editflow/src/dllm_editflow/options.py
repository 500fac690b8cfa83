"""Options of the sampler `editflow`; checked once, when the sampler is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dllm_core.config import at_least, one_of, within
from dllm_core.errors import OptionError
from dllm_editflow.kappa import get_kappa

MODES = ("tau", "event", "threshold", "one")
GRIDS = ("kappa", "time")
SOURCES = ("masks", "empty")
DEFAULT_NEW_TOKENS = 128
GENERATION_STEPS, EDIT_STEPS = 128, 64


@dataclass(frozen=True, kw_only=True)
class EditFlowOptions:
    """How a text is edited, or made by editing an empty or masked one.

    Args:
        mode: which edits are made with one pass of the model. ``tau``: each with its probability in this step of the
            time, all of a step at once (tau-leaping). ``event``: the next one of the exact process, for models that
            know no time. ``threshold``: all whose rate is at least `threshold`, until none is left. ``one``: of those
            the surest. The first two are the flow, the last two draw no edits at random.
        source: what `sample` starts from behind the prompt: ``masks``, as many as ``max_new_tokens``, or ``empty``.
        max_new_tokens: ``masks``: how many to begin with; edits may make the completion longer or shorter. ``empty``:
            the most tokens of a completion. None: 128, or what the context has left.
        max_length: the most tokens of prompt and completion, or of an edited text; with ``masks`` they begin as long.
            None: the model's context.
        steps: of the grid of ``tau``; None: 128, for edits 64.
        max_passes: the other modes end a row after so many passes of the model, whatever is left to do. ``tau`` divides
            a step where tokens are missing behind one another, so often at most: see `dllm_editflow.choosing.tau_leap`.
        grid: where the steps of ``tau`` stand. ``kappa``: evenly in kappa, so that they are the same whatever kappa the
            model was trained with. ``time``: evenly in time, each with the rates at its beginning, as published.
        kappa: the schedule that the model was trained with; it says at which time the model is asked.
        strength: starts at kappa = 1 - strength: 1 takes the text for a mere source, less for nearly done.
        until: ``event`` ends at this kappa; at 1 when no rate is left.
        threshold: the lowest rate at which ``threshold`` and ``one`` make an edit.
        temperature: of tokens; 0 takes the most probable. When edits are made does not depend on it.
        top_k, top_p: only the k most probable tokens, only the smallest set of tokens that holds probability p.
        seed: an int for all rows, or one per row.
        suppress_tokens: ids that are never written. The mask, the padding and the beginning of sequence never are, an
            end of sequence only in a completion.
        guidance_scale: classifier-free guidance w: rates r_c^(1+w) r_u^-w, and token probabilities likewise. The
            unconditional text has the mask in place of locked tokens, all but the first, as in training with
            ``condition_dropout``.
        correction: (c, a, b): each step of ``tau`` goes forward by 1 + c t^a (1-t)^b of its length and then back, by
            the rates of the reversed flow; published are (60, 1.5, 0.5) and (150, 1, 0.25) for ``empty``. Empty: none.
        max_edits: the most edits of a row.
        max_churn: a row ends once it has made this many times the edits that lead from its source to what it is.
        own_token: a token may be substituted by itself, which is no edit (as published).

    Raises:
        OptionError: a value out of range, or two options that exclude each other.
    """

    mode: str = "tau"
    source: str = "masks"
    max_new_tokens: int | None = None
    max_length: int | None = None
    steps: int | None = None
    max_passes: int = 1000
    grid: str = "kappa"
    kappa: str = "cubic"
    strength: float = 1.0
    until: float = 0.99
    threshold: float = 0.5
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | Sequence[int] = 0
    suppress_tokens: Sequence[int] = ()
    guidance_scale: float = 0.0
    correction: Sequence[float] = ()
    max_edits: int | None = None
    max_churn: float | None = None
    own_token: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("mode", MODES), ("grid", GRIDS), ("source", SOURCES)):
            one_of(name, getattr(self, name), allowed)
        get_kappa(self.kappa)
        for name in ("max_new_tokens", "max_length", "steps", "max_passes", "top_k"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
        for name in ("temperature", "guidance_scale"):
            at_least(name, getattr(self, name), 0)
            if not math.isfinite(getattr(self, name)):
                raise OptionError(f"{name} must be a finite number, got {getattr(self, name)}")
        for name in ("until", "threshold", "strength", *(() if self.top_p is None else ("top_p",))):
            within(name, getattr(self, name), 0.0, 1.0)
        for name in ("threshold", "strength"):
            if getattr(self, name) == 0:
                raise OptionError(f"{name} must be above 0, got 0; 0 would edit everywhere or nothing")
        if self.max_edits is not None:
            at_least("max_edits", self.max_edits, 0)
        if self.max_churn is not None:
            at_least("max_churn", self.max_churn, 1)
        self._check_together()

    def _check_together(self) -> None:
        if self.max_length is not None and self.max_new_tokens is not None:
            raise OptionError("max_length and max_new_tokens exclude each other; give one of them")
        if self.steps is not None and self.mode != "tau":
            raise OptionError(f"steps divide the time of mode='tau', not of {self.mode!r}; max_passes bounds that one")
        if self.grid == "time" and self.strength < 1:
            raise OptionError(f"grid='time' starts at time 0, without strength={self.strength}; use grid='kappa'")
        if not self.correction:
            return
        if len(self.correction) != 3 or not all(0 <= each < math.inf for each in self.correction):
            raise OptionError(f"correction is three numbers (c, a, b), 0 or above; got {tuple(self.correction)}")
        if self.mode != "tau" or self.grid != "kappa":
            raise OptionError("correction goes forward and back on a grid of times; use mode='tau' and grid='kappa'")

    def new_tokens(self, prompt_length: int, context_length: int | None) -> int:
        """Masks behind a prompt of that length, or the room that is left for tokens; below 1 where nothing fits."""
        if self.max_length is not None:
            return self.max_length - prompt_length
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return DEFAULT_NEW_TOKENS if context_length is None else min(DEFAULT_NEW_TOKENS, context_length - prompt_length)

    def planned_steps(self, *, generates: bool) -> int:
        """Steps of the grid."""
        if self.steps is not None:
            return self.steps
        return GENERATION_STEPS if generates else EDIT_STEPS
