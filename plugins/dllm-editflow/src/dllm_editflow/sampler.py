"""The sampler `editflow`: texts made and mended by inserting, deleting and substituting, many edits a step.

One loop: ask the model for the rates of all edits, choose which fire, write them. Rows never see each other.

Source: Havasi et al., "Edit Flows", arXiv:2506.09018, appendix C and section 3; ZHZisZZ/dllm at ca17675,
dllm/pipelines/editflow/sampler.py, whose steps are those of ``grid="time"``, ``kappa="linear"`` and ``own_token``.

Shapes: B rows, R rows still being written, L tokens of the longest.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dllm_core.errors import OptionError, PromptError
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.loading import denoiser_from
from dllm_core.noise.counter import fold
from dllm_core.samplers import parts
from dllm_core.samplers.base import Sampler
from dllm_core.samplers.canvas import Canvas, completion_canvas, infill_canvas, row_mask
from dllm_core.samplers.fit import Demands
from dllm_core.samplers.output import SampleOutput, Step, completion_text, cut_at_end
from dllm_core.samplers.planning import row_keys
from dllm_core.samplers.prompts import Prompts, check_lengths, encode, encode_canvases
from dllm_editflow import choosing
from dllm_editflow.apply import KEPT, Applied, Rows, apply_edits
from dllm_editflow.choosing import Chosen, Moment, Part
from dllm_editflow.deciding import Decide, Decision, Limits, allowed_rates
from dllm_editflow.grid import moves
from dllm_editflow.host import hashes, rows_left, take_in, texts
from dllm_editflow.kappa import get_kappa
from dllm_editflow.operations import edits_of_step
from dllm_editflow.options import EditFlowOptions
from dllm_editflow.reading import read_edits
from dllm_editflow.reversing import turn_back
from dllm_editflow.state import DRAFT, EMPTY, MASKS, EditState, lay_out, open_gaps, put_back, taken

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dllm_editflow.models.heads import EditStates


class EditFlowSampler(Sampler):
    """Completes, infills and edits with a model that has edit heads.

    Args:
        denoiser: the model; or give ``model`` and perhaps ``tokenizer``, whose family is then found by its model type.
        options: those of `EditFlowOptions`.

    Raises:
        OptionError: an option is unknown, out of range, or does not fit the model.
    """

    options_class: ClassVar[type[EditFlowOptions]] = EditFlowOptions
    demands: ClassVar[Demands] = Demands(capabilities=("supports_edits",))

    def __init__(
        self,
        denoiser: Denoiser | None = None,
        *,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: object,
    ) -> None:
        self.denoiser = denoiser_from(denoiser, model, tokenizer)
        self.options, self.rule, self.cache = parts.build(EditFlowOptions, options)
        check_model(self.options, self.denoiser)

    def start(self, prompts: Prompts) -> EditState:
        """Lay out prompts and what their completions are made from, to be moved on by `step`."""
        rows = encode(self.denoiser, prompts)
        room = [self.options.new_tokens(len(row), self.denoiser.context_length) for row in rows]
        lengths = [len(row) + new for row, new in zip(rows, room, strict=True)]
        check_lengths(self.denoiser, lengths, [len(row) for row in rows])
        began_as = self.options.source
        masks = room if began_as == MASKS else [0] * len(rows)
        canvas = completion_canvas(rows, masks, max(room), self.denoiser.mask_token_id)
        locked = [[True] * len(row) + [False] * new for row, new in zip(rows, masks, strict=True)]
        gaps = [[False] * (len(row) - 1) + [True] * (1 + new) for row, new in zip(rows, masks, strict=True)]
        most = lengths if began_as == EMPTY else None
        return self._begin(canvas, lay_out(canvas.rows, locked, gaps, *self._filler), began_as, most)

    def start_infill(self, canvases: Prompts) -> EditState:
        """Lay out given texts, whose masks are to be replaced by any number of tokens and all else stays."""
        rows = encode_canvases(self.denoiser, canvases)
        check_lengths(self.denoiser, [len(row) for row in rows], [0] * len(rows))
        locked = [[token != self.denoiser.mask_token_id for token in row] for row in rows]
        canvas = infill_canvas(rows, None, self.denoiser.mask_token_id)
        return self._begin(canvas, lay_out(rows, locked, [open_gaps(row) for row in locked], *self._filler), MASKS)

    def start_edit(
        self,
        rows: Sequence[Sequence[int]],
        *,
        locked: Sequence[Sequence[bool]] | None = None,
        gaps: Sequence[Sequence[bool]] | None = None,
    ) -> EditState:
        """Lay out drafts to be mended.

        Args:
            rows: token ids.
            locked: for every token whether it must stay; None: no token is. The first of a row always stays.
            gaps: for every token whether something may be inserted behind it; None: behind and right before tokens
                that may change.

        Raises:
            PromptError: a draft is empty, longer than the context, or has ids outside the vocabulary; or flags that
                are not as many as its tokens.
            OptionError: the options ask for a correction.
        """
        canvas, laid_out = self._drafts(rows, locked, gaps)
        return self._begin(canvas, laid_out, DRAFT)

    @torch.no_grad()
    def suspicion(
        self,
        rows: Sequence[Sequence[int]],
        locked: Sequence[Sequence[bool]] | None = None,
        gaps: Sequence[Sequence[bool]] | None = None,
    ) -> Tensor:
        """Where the model would edit, in one pass: the rates of all edits, 0 where none is allowed. (B, L, 3) float64

        Args:
            rows, locked, gaps: as of `start_edit`.
        """
        _, laid_out = self._drafts(rows, locked, gaps)
        times = [self._start_time] * len(rows)
        widths = [len(row) for row in rows]
        return self._read(laid_out, widths, times, functools.partial(self._allowed, laid_out))

    @torch.no_grad()
    def step(self, state: EditState) -> Step:
        """Take one step: ask for rates, choose what fires, make the edits.

        Where the model knows no time, rows skip the steps of the grid in which nothing fires.

        Raises:
            PromptError: the run is finished.
        """
        if state.finished:
            raise PromptError("this run is finished; start another one")
        numbers = list(state.active)
        rows = taken(state.rows, numbers, max(state.widths[row] for row in numbers))
        decision = self._decide(state, rows)
        ended = take_in(state, decision, self.options)
        width = max(state.widths[row] for row in numbers)
        applied = apply_edits(rows, decision.edits, width, self.denoiser.pad_token_id)
        self._put_back(state, numbers, applied, decision)
        state.active = rows_left(state, self.options, ended)
        return self._told_step(state, numbers, applied)

    def finish(self, state: EditState) -> SampleOutput:
        """The result of a run whose last step was taken."""
        if not state.finished:
            raise PromptError("this run is not finished; call step until state.finished")
        prompt_lengths = state.canvas.prompt_lengths
        rows = [row[start:] for row, start in zip(texts(state.rows, state.widths, state), prompt_lengths, strict=True)]
        if state.canvas.completes:
            rows = [cut_at_end(row, self.denoiser.end_token_ids) for row in rows]
            state.stats.tokens = sum(map(len, rows))
        else:
            state.stats.tokens = sum(each.new is not None for log in state.operations for each in log)
        state.stats.seconds = time.perf_counter() - state.started
        tokenizer = self.denoiser.tokenizer
        ends = self.denoiser.adapter.eot_texts if state.canvas.completes else ()
        return SampleOutput(
            sequences=state.input_ids.clone(),
            lengths=torch.tensor(state.widths),
            prompt_lengths=torch.tensor(prompt_lengths),
            texts=None if tokenizer is None else [completion_text(row, tokenizer, ends) for row in rows],
            stats=state.stats,
        )

    @property
    def _filler(self) -> tuple[int, torch.device]:
        return self.denoiser.pad_token_id, self.denoiser.device

    @property
    def _start_time(self) -> float:
        start = torch.tensor(1 - self.options.strength, dtype=torch.float64)
        return float(get_kappa(self.options.kappa).inverse(start))

    @property
    def _looks_ahead(self) -> bool:
        return not takes_time(self.denoiser) and not self.options.correction

    @property
    def _divides(self) -> bool:
        """Not where corrections go forward and back with all rows alike, nor on the published grid."""
        return self.options.grid == "kappa" and not self.options.correction

    def _drafts(
        self,
        rows: Sequence[Sequence[int]],
        locked: Sequence[Sequence[bool]] | None,
        gaps: Sequence[Sequence[bool]] | None,
    ) -> tuple[Canvas, Rows]:
        if self.options.correction:
            raise OptionError(
                "correction needs the rates of the reversed flow, which are known for texts made from nothing or from "
                "masks; for drafts they would have to be trained; leave correction out"
            )
        rows = encode(self.denoiser, [list(row) for row in rows])
        check_lengths(self.denoiser, [len(row) for row in rows], [0] * len(rows))
        given = [[False] * len(row) for row in rows] if locked is None else locked
        locked = [[True, *list(row)[1:]] for row in given]
        gaps = [open_gaps(row) for row in locked] if gaps is None else gaps
        laid_out = lay_out(rows, locked, gaps, *self._filler)
        return infill_canvas(rows, None, self.denoiser.mask_token_id), laid_out

    def _begin(self, canvas: Canvas, rows: Rows, began_as: str, most: Sequence[int] | None = None) -> EditState:
        count, options = len(canvas.rows), self.options
        longest = options.max_length or self.denoiser.context_length
        state = EditState(
            canvas=canvas,
            began_as=began_as,
            rows=rows,
            widths=list(canvas.lengths),
            most_tokens=[longest] * count if most is None else list(most),
            keys=torch.tensor(row_keys(canvas.rows, options.seed), device=self.denoiser.device),
            plan=moves(options, options.planned_steps(generates=canvas.completes)) if options.mode == "tau" else (),
            at=[0] * count,
            left=[1.0] * count,
            parts=[0] * count,
            clock=[-math.log(options.strength)] * count,
            made=[0] * count,
            active=[] if options.max_edits == 0 else list(range(count)),
            operations=[[] for _ in range(count)],
            expected=torch.full((count,), torch.nan, dtype=torch.float64, device=self.denoiser.device),
            seen=[set() for _ in range(count)],
        )
        if options.mode in ("threshold", "one"):
            for row, text in enumerate(hashes(state, range(count))):
                state.seen[row].add(text)
        return state

    def _decide(self, state: EditState, rows: Rows) -> Decision:
        device, active = rows.lengths.device, state.active
        moment = Moment(
            keys=self._keys(state, device),
            at=torch.tensor([state.at[row] for row in active], device=device),
            clock=torch.tensor([state.clock[row] for row in active], dtype=torch.float64, device=device),
        )
        move = state.plan[state.at[active[0]]] if state.plan else None  # with corrections all rows are at the same
        if move is not None and move.back:
            return turn_back(rows, moment, move, state.began_as, self.denoiser.mask_token_id)
        decide = Decide(
            rows=rows,
            choose=self._chooser(state, moment),
            options=self.options,
            keys=moment.keys,
            banned=self._banned(state),
            mask_token_id=self.denoiser.mask_token_id,
            limits=self._limits(state, device),
        )
        times = [self._time(state, row) for row in active]
        decision = self._read(rows, [state.widths[row] for row in active], times, decide, state)
        state.stats.logit_rows += decision.logit_rows
        return decision

    def _keys(self, state: EditState, device: torch.device) -> Tensor:
        """Of the noise, another one in each part of a step; (R,) int64."""
        keys = state.keys[torch.tensor(state.active, device=device)]
        parts = [state.parts[row] for row in state.active]
        if not any(parts):
            return keys
        number = torch.tensor(parts, device=device)
        return fold(keys, choosing.PART, number).where(number > 0, keys)

    def _part(self, state: EditState, device: torch.device) -> Part:
        """Where the active rows are in their steps. A row that is full has no use for more insertions."""
        most = self.options.max_passes
        divisible = [
            state.parts[row] < most and (state.most_tokens[row] is None or state.widths[row] < state.most_tokens[row])
            for row in state.active
        ]
        left = torch.tensor([state.left[row] for row in state.active], dtype=torch.float64, device=device)
        return Part(left, torch.tensor(divisible, device=device))

    def _time(self, state: EditState, row: int) -> float:
        """What the model is told of a row."""
        if not state.plan:
            return self._start_time
        if state.left[row] == 1:
            return state.plan[state.at[row]].time
        return float(get_kappa(self.options.kappa).inverse(torch.tensor(state.kappa(row), dtype=torch.float64)))

    def _chooser(self, state: EditState, moment: Moment) -> Callable[[Tensor], Chosen]:
        """Which edits fire, by the mode."""
        options = self.options
        if options.mode == "tau":
            factors = torch.tensor([move.factor for move in state.plan], dtype=torch.float64, device=moment.at.device)
            horizon = len(factors) - min(state.at[row] for row in state.active) if self._looks_ahead else 1
            part = self._part(state, moment.at.device) if self._divides else None
            return functools.partial(choosing.tau_leap, moment=moment, factors=factors, horizon=horizon, part=part)
        if options.mode == "event":
            end = math.inf if options.until == 1 else -math.log(1 - options.until)
            return functools.partial(choosing.next_event, moment=moment, end=end)
        rule = choosing.surest if options.mode == "one" else choosing.sure_enough
        return functools.partial(rule, moment=moment, lowest=options.threshold)

    def _read(
        self,
        rows: Rows,
        widths: Sequence[int],
        times: Sequence[float],
        reader: Callable[[EditStates], object],
        state: EditState | None = None,
    ) -> object:
        """One pass of the model; guided, over the rows with and without their condition."""
        ids, time_ = rows.input_ids, torch.tensor(times, device=rows.lengths.device)
        mask = row_mask(widths, ids.device)
        if self.options.guidance_scale > 0:
            hidden = rows.locked & rows.real
            hidden[:, 0] = False
            ids = torch.cat([ids, ids.masked_fill(hidden, self.denoiser.mask_token_id)])  # (2R, L)
            time_, mask = time_.repeat(2), None if mask is None else mask.repeat(2, 1)
        if state is not None:
            state.stats.forward_passes += 1
            state.stats.positions_processed += ids.numel()
        return read_edits(self.denoiser, ids, mask, time=time_, reader=reader)

    def _allowed(self, rows: Rows, states: EditStates) -> Tensor:
        return allowed_rates(states.rates, rows, self.options, self.denoiser.mask_token_id)

    def _banned(self, state: EditState) -> tuple[int, ...]:
        """What is never written: what no text is made of, and ends of sequence inside one."""
        denoiser, ends = self.denoiser, self.denoiser.end_token_ids
        never = {denoiser.mask_token_id, denoiser.pad_token_id, denoiser.bos_token_id} - {None, *ends}
        return (*sorted(never | (set() if state.canvas.completes else set(ends))), *self.options.suppress_tokens)

    def _limits(self, state: EditState, device: torch.device) -> Limits:
        edits, most = self.options.max_edits, [state.most_tokens[row] for row in state.active]
        widths = [state.widths[row] for row in state.active]
        meets = any(each is not None and 2 * width > each for each, width in zip(most, widths, strict=True))
        left = None if edits is None else torch.tensor([edits - state.made[row] for row in state.active], device=device)
        never_met = 2 * max(widths)
        tokens = [never_met if each is None else each for each in most]
        return Limits(left, torch.tensor(tokens, device=device) if meets else None)

    def _put_back(self, state: EditState, numbers: Sequence[int], applied: Applied, decision: Decision) -> None:
        width = max(state.widths)
        fillers = (self.denoiser.pad_token_id, 0, True, False, -1)
        pairs = zip(state.rows, applied.rows, fillers, strict=True)
        state.rows = Rows(*(put_back(old, numbers, new, width, empty) for old, new, empty in pairs))
        state.expected = put_back(state.expected, numbers, decision.expected, width, 0)

    def _told_step(self, state: EditState, numbers: Sequence[int], applied: Applied) -> Step:
        shape = state.input_ids.shape
        nothing = torch.zeros(shape, dtype=torch.bool, device=applied.kinds.device)
        unknown = torch.full(shape, torch.nan, device=applied.kinds.device)
        state.index += 1
        return Step(
            index=state.index - 1,
            block=0,
            input_ids=state.input_ids.clone(),
            committed=put_back(nothing, numbers, applied.kinds != KEPT, shape[1], False),
            confidence=put_back(unknown, numbers, applied.surety, shape[1], torch.nan),
            done=state.done,
            edits=[edits_of_step(log, state.index - 1) for log in state.operations],
        )


def takes_time(denoiser: Denoiser) -> bool:
    """Whether the model's rates depend on the time that it is told."""
    return getattr(denoiser.bare_model.edit_options, "edit_time_embedding", True)


def check_model(options: EditFlowOptions, denoiser: Denoiser) -> None:
    """Raise where the options do not fit the model.

    Raises:
        OptionError: no edit heads, the exact process of a model that knows the time, or ids that it does not have.
    """
    if not getattr(denoiser.adapter, "supports_edits", False):
        raise OptionError(
            f"sampler editflow needs a model with edit heads, which {type(denoiser.adapter).__name__} does not serve; "
            "make one with: dllm convert CHECKPOINT FOLDER --to editflow"
        )
    if options.mode == "event" and takes_time(denoiser):
        raise OptionError(
            "mode='event' needs rates that change with the edits alone, and this model knows the time; use mode='tau'"
        )
    for token in options.suppress_tokens:
        if not 0 <= token < denoiser.vocab_size:
            raise OptionError(f"suppress_tokens: {token} is no token id; ids run from 0 to {denoiser.vocab_size - 1}")
