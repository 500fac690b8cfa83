"""The one sampling loop: propose, select, commit, block after block.

Rows never see each other: padding is masked, quotas are counted per row and noise is keyed by the row, so a ragged
batch gives each row what it gets alone.

Shapes: B rows, R rows still being written, L canvas length, W the longest of those rows, K block size, M open
positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch

from dllm_core.errors import PromptError
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.loading import denoiser_from
from dllm_core.noise.counter import uniform
from dllm_core.samplers import parts, planning
from dllm_core.samplers.canvas import Canvas, completion_canvas, infill_canvas
from dllm_core.samplers.commit import BlockSize
from dllm_core.samplers.compiled import compiled_steps
from dllm_core.samplers.fit import Demands, check_family, check_history
from dllm_core.samplers.options import MaskedOptions
from dllm_core.samplers.output import SampleOutput, Step, completion_text, cut_at_end
from dllm_core.samplers.prompts import Prompts, check_lengths, encode, encode_canvases
from dllm_core.samplers.proposals import Proposal, guided
from dllm_core.samplers.state import Block, Considered, Open, SamplerState, open_positions, spread
from dllm_core.samplers.view import FULL, View
from dllm_core.samplers.weighing import draws, weighed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Sampler:
    """Turns canvases of masks into text.

    Args:
        denoiser: the model; or give ``model`` and perhaps ``tokenizer``, whose family is then found by its model type.
        options: those of `options_class`, and those of the chosen commit rule and cache policy.

    Raises:
        OptionError: an option is unknown, out of range, or does not fit the model.
    """

    options_class: ClassVar[type[MaskedOptions]] = MaskedOptions
    attention: ClassVar[str] = FULL  # or BLOCK_CAUSAL: each block looks at itself and what is in front of it
    demands: ClassVar[Demands] = Demands()
    opening_only: ClassVar[tuple[str, ...]] = ()  # methods that it overrides for a block's first step alone

    def __init__(
        self,
        denoiser: Denoiser | None = None,
        *,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: object,
    ) -> None:
        self.denoiser = denoiser_from(denoiser, model, tokenizer)
        options = parts.with_fitting_cache(self.options_class, options, self.denoiser.adapter)
        self.options, self.rule, self.cache = parts.build(self.options_class, options)
        parts.check_against_model(self.options, self.cache, self.denoiser, self.attention)
        name, (commit, policy) = type(self).__name__, (self.options.commit, self.options.cache)
        check_family(name, self.demands, self.denoiser)
        check_history(name, self.demands, commit, self.rule, policy, self.cache)
        self.compiled = compiled_steps(type(self), Sampler, self.denoiser, self.rule, self.cache, self.options)

    @property
    def canvases_per_row(self) -> int:
        """The most canvases of a row that one step computes."""
        return 1

    def positions_beside(self, canvas: Canvas) -> int:
        """The most positions of a row that one step computes beside its canvas; caches make room for them."""
        return 0

    def sample(
        self, prompts: Prompts | None = None, *, prompt: Prompts | None = None, max_length: int | None = None
    ) -> SampleOutput:
        """Complete each prompt.

        Args:
            prompts: text, a list of texts, chat messages, a list of those, token ids, or a list of those.
            prompt: another name for ``prompts``.
            max_length: prompt and completion together, for this call only.

        Raises:
            PromptError: a prompt is empty, too long, or holds mask tokens.
        """
        if (prompts is None) == (prompt is None):
            raise PromptError("give the prompts once: sample(prompts) or sample(prompt=...)")
        sampler = self if max_length is None else self._with_length(max_length)
        return sampler._run(sampler.start(prompt if prompts is None else prompts))

    def infill(self, canvases: Prompts) -> SampleOutput:
        """Fill the mask tokens inside given texts and leave everything else as it is.

        Raises:
            PromptError: a canvas has no mask token, or does not fit the context.
        """
        return self._run(self.start_infill(canvases))

    def stream(self, prompts: Prompts) -> Iterator[Step]:
        """The steps of `sample`, as they happen; the last one's canvas is the result."""
        state = self.start(prompts)
        while not state.finished:
            yield self.step(state)

    def start(self, prompts: Prompts) -> SamplerState:
        """Lay out the canvas of a run, to be moved on by `step`."""
        rows = encode(self.denoiser, prompts)
        new_tokens = [self.options.new_tokens(len(row), self.denoiser.context_length) for row in rows]
        lengths = [len(row) + new for row, new in zip(rows, new_tokens, strict=True)]
        check_lengths(self.denoiser, lengths, [len(row) for row in rows])
        return self._begin(self.lay_out(rows, new_tokens))

    def start_infill(self, canvases: Prompts) -> SamplerState:
        """Lay out given canvases for infilling, to be moved on by `step`."""
        rows = encode_canvases(self.denoiser, canvases)
        check_lengths(self.denoiser, [len(row) for row in rows], [0] * len(rows))
        return self._begin(infill_canvas(rows, self.options.block_size, self.denoiser.mask_token_id))

    def lay_out(self, prompts: Sequence[Sequence[int]], new_tokens: Sequence[int]) -> Canvas:
        """Each prompt's tokens followed by its number of masks, on the grid of blocks that this sampler uses."""
        return completion_canvas(prompts, new_tokens, self.options.block_size, self.denoiser.mask_token_id)

    @torch.no_grad()
    def step(self, state: SamplerState) -> Step:
        """Take one step: propose a token at each open position, select, commit.

        Raises:
            PromptError: the run is finished.
        """
        block = state.block
        if block is None:
            raise PromptError("this run is finished; start another one")
        before, is_done = planning.current_ids(state), None  # (R, W)
        if self.compiled is None or block.step == 0:  # the step that opens a block is the loop's own
            ids, confidence = self._own_step(state, before)
        else:
            ids, confidence, _, is_done = self.compiled.step(state, before)
        written = (ids != before) & (ids != self.denoiser.mask_token_id)
        planning.write_rows(state.input_ids, block.rows, ids)
        block.step += 1
        if self.is_complete(state, ids) if is_done is None else self._is_over(state, lambda: state.told(is_done)):
            self._close(state, ids)
        return self._report(state, block, written, confidence)

    def _own_step(self, state: SamplerState, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The canvas after a step, and the confidences at what it considered; two (R, W)."""
        ids, (slots, masked, shown), proposal = self.consider(state, before)
        commit = self.rule.select(proposal, masked, state.block.step_quota)  # (R, M)
        committed = spread(commit.long(), slots, commit, before.shape[1]).bool()  # (R, W)
        state.block.proposal = proposal
        ids = torch.where(committed, spread(proposal.tokens, slots, commit, before.shape[1]), ids)
        confidence = planning.confidence_map(proposal.confidence, slots, shown, ids.shape[1])
        return self.revise(state, ids), confidence

    def consider(self, state: SamplerState, ids: torch.Tensor) -> Considered:
        """Ask the model once and propose; a sampler that compares several canvases hands back the one it goes on with.

        Args:
            state: the run.
            ids: (R, W) int64, the canvas, rows as in ``state.block.rows``.
        """
        open_ = self.propose_at(state, ids)
        logits = self.logits_at(state, ids, open_.positions)  # (R, M, V)
        return Considered(ids, open_, self.proposal_from(state, logits, open_))

    def propose_at(self, state: SamplerState, ids: torch.Tensor) -> Open:
        """Where this step proposes tokens: at the masks of the block, unless a sampler overrides this.

        Args:
            state: the run.
            ids: (R, W) int64, the canvas, rows as in ``state.block.rows``.
        """
        block = state.block
        slots, masked = open_positions(ids, block, block.open_counts[block.step], self.denoiser.mask_token_id)
        return Open(slots, masked, masked)

    def logits_at(self, state: SamplerState, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Ask the model: logits at open positions (R, M) of the canvas, guided where that is asked for. -> (R, M, V)"""
        block = state.block
        if state.hidden is not None:
            hidden = state.hidden[block.rows, : ids.shape[1]]
            ids = torch.cat([ids, ids.masked_fill(hidden, self.denoiser.mask_token_id)])  # (2R, W)
            positions = positions.repeat(2, 1)
        answer = state.cache.logits(View(block.layout, block.step, ids, positions))
        state.stats.forward_passes += answer.forward_passes
        state.stats.positions_processed += answer.positions
        state.stats.logit_rows += answer.logit_rows
        state.stats.host_syncs += answer.host_syncs
        return answer.logits if state.hidden is None else guided(*answer.logits.chunk(2), self.options.guidance_scale)

    def proposal_from(self, state: SamplerState, logits: torch.Tensor, open_: Open) -> Proposal:
        """One token and one confidence for each open position, and what the commit rule needs to know of them."""
        drawn = draws(self.options, lambda purpose: self.noise(state, purpose, open_.positions))
        block = state.block
        return weighed(self.denoiser, self.rule, self.options, logits, open_, block.positions, drawn, block.history)

    def is_complete(self, state: SamplerState, ids: torch.Tensor) -> bool:
        """Whether the block is finished in every row, after a step that left the canvas ``ids`` (R, W)."""
        return self._is_over(state, lambda: not self._has_masks(state, ids))

    def open_block(self, state: SamplerState) -> Block | None:
        """The next block that has a mask in any unfinished row, None where none is left.

        A sampler that plans its commits in another way overrides this and changes the block's ``quota`` and
        ``open_counts``.
        """
        return planning.open_block(state, self.options, self.rule.follows_quota, self.attention)

    def revise(self, state: SamplerState, ids: torch.Tensor) -> torch.Tensor:
        """What a step leaves of the canvas after its commits; as it is, unless a sampler overrides this.

        ``state.block.proposal`` holds what was proposed, at the positions of `propose_at`. A sampler that masks tokens
        again puts the mask token there, only inside ``state.block``, where it must have
        planned for them (`open_block`).

        Args:
            state: the run; ``input_ids`` still holds the canvas before the step.
            ids: (R, W) int64, the canvas with the step's commits, rows as in ``state.block.rows``.

        Returns:
            (R, W) int64.
        """
        return ids

    def noise(self, state: SamplerState, purpose: int, positions: torch.Tensor) -> torch.Tensor:
        """Uniform numbers for this step, a pure function of row key, purpose, block, step and position.

        Args:
            purpose: what they are for; 0 to 15 are the core's own.
            positions: (R, M) int64.

        Returns:
            (R, M) float64, between 0 and 1.
        """
        return uniform(state.keys[state.block.rows, None], purpose, state.block.number, state.block.step, positions)

    def finish(self, state: SamplerState) -> SampleOutput:
        """The result of a run whose last step was taken."""
        if not state.finished:
            raise PromptError("this run is not finished; call step until state.finished")
        lengths = state.canvas.shown
        prompt_lengths = state.canvas.prompt_lengths
        written = state.told(state.input_ids)
        rows = [row[start:stop] for row, start, stop in zip(written, prompt_lengths, lengths, strict=True)]
        if state.canvas.completes:
            rows = [cut_at_end(row, self.denoiser.end_token_ids) for row in rows]
        state.stats.tokens = sum(len(row) for row in rows) if state.canvas.completes else _masks(state.canvas)
        state.stats.seconds = time.perf_counter() - state.started
        tokenizer = self.denoiser.tokenizer
        ends = self.denoiser.adapter.eot_texts if state.canvas.completes else ()
        return SampleOutput(
            sequences=state.canvas.cut(state.input_ids, self.denoiser.pad_token_id),
            lengths=torch.tensor(lengths),
            prompt_lengths=torch.tensor(prompt_lengths),
            texts=None if tokenizer is None else [completion_text(row, tokenizer, ends) for row in rows],
            stats=state.stats,
        )

    def _run(self, state: SamplerState) -> SampleOutput:
        while not state.finished:
            self.step(state)
        return self.finish(state)

    def _with_length(self, max_length: int) -> Sampler:
        copy = object.__new__(type(self))
        copy.__dict__ = self.__dict__ | {"options": replace(self.options, max_length=max_length, max_new_tokens=None)}
        return copy

    def _begin(self, canvas: Canvas) -> SamplerState:
        state = planning.first_state(canvas, self.denoiser, self.options)
        rows = len(state.active) * (1 if state.hidden is None else 2)
        length = max(canvas.lengths) + self.positions_beside(canvas)
        state.cache = self.cache.start(self.denoiser, rows * self.canvases_per_row, length)
        if self.compiled is None:
            state.cache.claim()
        else:
            state.cache.borrow(self.compiled)
        state.stats.cache_bytes = state.cache.cache_bytes
        if self.canvases_per_row > 1:  # room is made for all; they come and go
            state.cache.keep(torch.arange(rows))
        self._open(state)
        return state

    def _is_over(self, state: SamplerState, asked: Callable[[], bool]) -> bool:
        """Whether the block is finished; the device is asked only where the plan does not tell."""
        block = state.block
        return block.step == len(block.open_counts) or (not self.rule.follows_quota and asked())

    def _has_masks(self, state: SamplerState, ids: torch.Tensor) -> bool:
        block = state.block
        return state.told(((ids.gather(1, block.positions) == self.denoiser.mask_token_id) & block.valid).any())

    def _close(self, state: SamplerState, ids: torch.Tensor) -> None:
        """End the rows that are complete and open the next block of the others."""
        ended = [False] * len(state.active)
        if self.options.stop_at_eos and state.canvas.completes and self.denoiser.end_token_ids:
            ends = torch.tensor(self.denoiser.end_token_ids, device=ids.device)
            prompts = torch.tensor([state.canvas.prompt_lengths[row] for row in state.active], device=ids.device)
            written = state.block.valid & (state.block.positions >= prompts[:, None])  # an end in a prompt ends nothing
            found = torch.isin(ids.gather(1, state.block.positions), ends) & written
            ended = state.told(found.any(1))  # the one question to the device in a block
        planning.end_rows(state, ended, self.denoiser)
        self._open(state)

    def _open(self, state: SamplerState) -> None:
        """The next block, and for the commit rule a new sheet to keep its history on."""
        block = state.block = self.open_block(state)
        if block is None:
            state.cache.end()
        if block is not None and "history" in self.rule.needs:
            rows, places = block.positions.shape
            tokens = self.denoiser.vocab_size, self.denoiser.mask_token_id
            block.history = self.rule.remember(BlockSize(rows, places, *tokens, block.positions.device))

    def _report(self, state: SamplerState, block: Block, committed: torch.Tensor, confidence: torch.Tensor) -> Step:
        full = torch.zeros_like(state.input_ids, dtype=torch.bool)
        surety = torch.full_like(state.input_ids, torch.nan, dtype=torch.float32)
        planning.write_rows(full, block.rows, committed)
        planning.write_rows(surety, block.rows, confidence)
        state.index += 1
        canvas = state.canvas
        ids = canvas.cut(state.input_ids, self.denoiser.pad_token_id).clone()
        written, surety = canvas.cut(full, False), canvas.cut(surety, torch.nan)
        return Step(state.index - 1, block.number, ids, written, surety, state.done.clone())


def _masks(canvas: Canvas) -> int:
    return sum(row.count(canvas.mask_token_id) for row in canvas.rows)
