"""The live view of a run that a sampler just started: what to show of it, and how many steps lie ahead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dllm_core.display.live import LiveView, Row
from dllm_core.display.text import TokenText
from dllm_core.samplers.planning import steps_per_block
from dllm_core.samplers.quota import quota_counts

if TYPE_CHECKING:
    from rich.console import Console

    from dllm_core.models.denoiser import Denoiser
    from dllm_core.samplers.base import Sampler
    from dllm_core.samplers.canvas import Canvas
    from dllm_core.samplers.state import SamplerState


def view_of_run(
    console: Console, sampler: Sampler, state: SamplerState, captions: Sequence[str], *, seconds: float = 0.0
) -> LiveView:
    """The view of a run that a sampler just started.

    Args:
        captions: one a row: its prompt, or empty.
        seconds: slow the run down by up to so many, so that it can be watched.
    """
    denoiser, canvas = sampler.denoiser, state.canvas
    has_blocks = hasattr(state, "block")  # samplers that edit have none
    open_counts = state.block.open_counts if has_blocks and state.block else ()
    spans = zip(captions, canvas.prompt_lengths, canvas.shown, range(len(canvas.rows)), strict=True)
    return LiveView(
        console,
        [Row(caption, start, stop, block_starts(canvas, row)) for caption, start, stop, row in spans],
        canvas.cut(state.input_ids, denoiser.pad_token_id),
        token_text(denoiser),
        mask_id=denoiser.mask_token_id,
        special_ids=special_ids(denoiser),
        steps=steps_ahead(sampler, state) if has_blocks else None,
        blocks=max(canvas.blocks(row) for row in range(len(canvas.rows))),
        forward_passes=lambda: state.stats.forward_passes,
        # Many runs end with their first block, so the time is measured out for that one.
        pause=seconds / len(open_counts) if open_counts else 0.0,
        pauses=seconds,
    )


def block_starts(canvas: Canvas, row: int) -> tuple[int, ...]:
    """The positions where a block of a row begins, but for the first."""
    return tuple(canvas.span(row, block)[0] for block in range(1, canvas.blocks(row)))


def token_text(denoiser: Denoiser) -> TokenText:
    """The text of each token of a model."""
    tokenizer = denoiser.tokenizer
    return TokenText(lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def special_ids(denoiser: Denoiser) -> set[int]:
    """The tokens that a finished text leaves out, without the mask."""
    return {*denoiser.end_token_ids, *denoiser.tokenizer.all_special_ids} - {denoiser.mask_token_id}


def steps_ahead(sampler: Sampler, state: SamplerState) -> int | None:
    """How many steps a run takes unless its rows end early; None where it is decided on the way."""
    options, canvas = sampler.options, state.canvas
    if not sampler.rule.follows_quota or options.stochastic_quota:
        return None

    def steps(row: int, block: int) -> int:
        budget = steps_per_block(options, canvas, row)
        masks = canvas.masks(row, block)
        return len(quota_counts(masks, budget, options.quota, options.schedule, options.time_epsilon))

    rows = range(len(canvas.rows))
    last = max(canvas.blocks(row) for row in rows)
    return sum(max(steps(row, block) for row in rows if block < canvas.blocks(row)) for block in range(last))
