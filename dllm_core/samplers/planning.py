"""Everything around a step that is decided on the host: which rows, which block, how many commits.

Shapes: B rows, R rows still being written, L canvas length, W the longest of those rows, K block size, S steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from dllm_core.errors import OptionError
from dllm_core.models import Denoiser
from dllm_core.noise.counter import key_from, uniform
from dllm_core.samplers.canvas import Canvas, row_mask
from dllm_core.samplers.options import MaskedOptions
from dllm_core.samplers.quota import quota_counts, schedule_quota
from dllm_core.samplers.state import Block, SamplerState, spread
from dllm_core.samplers.view import FULL, Layout

# What a draw is for: a counter of its own, so that no two uses see the same noise.
TOKEN, CONFIDENCE, PRIORITY, QUOTA = range(4)


def first_state(canvas: Canvas, denoiser: Denoiser, options: MaskedOptions) -> SamplerState:
    """A run before its first block."""
    input_ids = canvas.tensor(denoiser.pad_token_id, denoiser.device)
    return SamplerState(
        canvas=canvas,
        input_ids=input_ids,
        hidden=_hidden(canvas, input_ids, options) if options.guidance_scale > 0 else None,
        keys=torch.tensor(row_keys(canvas.rows, options.seed), device=denoiser.device),
        active=[row for row in range(len(canvas.rows)) if denoiser.mask_token_id in canvas.rows[row]],
        done=torch.tensor([denoiser.mask_token_id not in row for row in canvas.rows], device=denoiser.device),
    )


def row_keys(rows: Sequence[Sequence[int]], seed: int | Sequence[int]) -> list[int]:
    """One noise key a row, from its seed, its tokens, and how many equal rows stand before it.

    Not from its number: a row draws the same alone and in any batch, and repeated prompts still differ.

    Raises:
        OptionError: a list of seeds that is not as long as the batch.
    """
    seeds = [seed] * len(rows) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(rows):
        raise OptionError(f"seed has {len(seeds)} values for {len(rows)} prompts; give one int, or one a prompt")
    seen: dict[tuple[int, bytes], int] = {}
    keys = []
    for row, own in zip(rows, seeds, strict=True):
        content = hashlib.blake2b(",".join(map(str, row)).encode(), digest_size=7).digest()
        number = seen.get((own, content), 0)
        seen[own, content] = number + 1
        keys.append(key_from(own, int.from_bytes(content, "big"), number))
    return keys


def open_block(state: SamplerState, options: MaskedOptions, follows_quota: bool, attention: str = FULL) -> Block | None:
    """The next block that has a mask in any unfinished row; None where none is left."""
    canvas = state.canvas
    last = max((canvas.blocks(row) for row in state.active), default=0)
    while state.next_block < last:
        number, state.next_block = state.next_block, state.next_block + 1
        masks = [canvas.masks(row, number) for row in state.active]
        if any(masks):
            counts = [_counts(state, options, row, number, n) for row, n in zip(state.active, masks, strict=True)]
            return _lay_out(state, options, number, masks, counts, follows_quota, attention)
    state.done |= True
    return None


def end_rows(state: SamplerState, ended: Sequence[bool], denoiser: Denoiser) -> None:
    """Drop rows that hold an end of sequence or have no mask left; fill what the former leave open."""
    before, keep = state.active, []
    for row, is_ended in zip(before, ended, strict=True):
        if is_ended:
            _, stop = state.canvas.span(row, state.block.number)
            filler = denoiser.pad_token_id if denoiser.eos_token_id is None else denoiser.eos_token_id
            state.input_ids[row, stop : state.canvas.lengths[row]] = filler
        elif state.canvas.has_masks_from(row, state.next_block):
            keep.append(row)
    state.active = keep
    state.done = torch.ones_like(state.done)
    state.done[keep] = False
    if 0 < len(keep) < len(before):
        numbers = torch.tensor([number for number, row in enumerate(before) if row in keep])  # known here: no question
        guided = state.hidden is not None
        state.cache.keep(torch.cat([numbers, numbers + len(before)]) if guided else numbers)


def current_ids(state: SamplerState) -> torch.Tensor:
    """The unfinished rows, as wide as the longest of them. -> (R, W)"""
    width = max(state.canvas.lengths[row] for row in state.active)
    if len(state.active) == state.input_ids.shape[0]:
        return state.input_ids[:, :width]
    return state.input_ids[state.block.rows, :width]


def write_rows(canvas: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """Put the unfinished rows (R, W) back into the whole canvas (B, L), in place."""
    if len(rows) == canvas.shape[0]:
        canvas[:, : values.shape[1]] = values
    else:
        canvas[rows, : values.shape[1]] = values


def confidence_map(confidence: torch.Tensor, slots: torch.Tensor, shown: torch.Tensor, width: int) -> torch.Tensor:
    """Confidences (R, M) at their positions, nan elsewhere. -> (R, W)"""
    there = spread(shown.long(), slots, shown, width).bool()
    return spread(confidence, slots, shown, width).masked_fill(~there, torch.nan)


def _lay_out(
    state: SamplerState,
    options: MaskedOptions,
    number: int,
    masks: list[int],
    counts: list[tuple[int, ...]],
    follows_quota: bool,
    attention: str,
) -> Block:
    device = state.input_ids.device
    layout = _layout(state, number, masks, attention, options.suffix_window)
    spans = torch.tensor([layout.starts, layout.stops], device=device)[..., None]  # (2, R, 1)
    positions = spans[0] + torch.arange(layout.block_size, device=device)  # (R, K)
    steps = max(map(len, counts))
    quota = torch.tensor([list(c) + [0] * (steps - len(c)) for c in counts], device=device)
    return Block(
        number=number,
        rows=torch.tensor(state.active, device=device),
        layout=layout if state.hidden is None else layout.twice(),
        positions=positions.clamp(max=max(layout.lengths) - 1),
        valid=positions < spans[1],
        quota=quota,
        open_counts=_open_counts(masks, counts, steps) if follows_quota else list(range(max(masks), 0, -1)),
    )


def _layout(state: SamplerState, number: int, masks: list[int], attention: str, suffix_window: int | None) -> Layout:
    canvas, device = state.canvas, state.input_ids.device
    starts, stops = zip(*(canvas.span(row, number) for row in state.active), strict=True)
    lengths = tuple(canvas.lengths[row] for row in state.active)
    origins = [canvas.origins[row] for row in state.active]
    return Layout(
        starts=starts,
        stops=stops,
        lengths=lengths,
        block_size=canvas.block_size,
        attention=attention,
        masks=tuple(masks),
        reaches=_reaches(stops, lengths, suffix_window if canvas.completes else None),
        origins=torch.tensor(origins, device=device),
        ends=torch.tensor(lengths, device=device),
        attention_mask=row_mask(lengths, device),
    )


def _reaches(stops: Sequence[int], lengths: Sequence[int], suffix_window: int | None) -> tuple[int, ...]:
    """How far behind its block each row sees; to its end where only the last position is left, which it sees anyway."""
    if suffix_window is None:
        return tuple(lengths)
    reaches = [stop + suffix_window for stop in stops]
    return tuple(n if reach >= n - 1 else reach for reach, n in zip(reaches, lengths, strict=True))


def _open_counts(masks: list[int], counts: list[tuple[int, ...]], steps: int) -> list[int]:
    """The most masks that any row has left before each step."""
    left = [[n - sum(c[:step]) for n, c in zip(masks, counts, strict=True)] for step in range(steps)]
    return [max(row) for row in left]


def _counts(state: SamplerState, options: MaskedOptions, row: int, number: int, masks: int) -> tuple[int, ...]:
    steps = steps_per_block(options, state.canvas, row)
    if not options.stochastic_quota:
        return quota_counts(masks, steps, options.quota, options.schedule, options.time_epsilon)

    key = torch.tensor(state.told(state.keys[row]))

    def draw(step: int, left: int, probability: float) -> int:
        noise = uniform(key, QUOTA, number, step, torch.arange(left))
        return int((noise < probability).sum())

    return schedule_quota(masks, steps, options.schedule, draw, time_epsilon=options.time_epsilon)


def steps_per_block(options: MaskedOptions, canvas: Canvas, row: int) -> int:
    """The step budget of each of a row's blocks: ceil(steps / blocks).

    Infilling counts the blocks of the longest canvas, as published, so there the number of blocks is the batch's; with
    ``steps_per_block`` or without ``steps`` it is not needed.
    """
    if options.steps_per_block is not None:
        return options.steps_per_block
    if options.steps is None:  # a position a step, in blocks no longer than the row itself
        return min(canvas.block_size, canvas.lengths[row] - canvas.prompt_lengths[row])
    if canvas.completes:
        return -(-options.steps // canvas.blocks(row))
    return -(-options.steps // -(-max(canvas.lengths) // canvas.block_size))


def _hidden(canvas: Canvas, input_ids: torch.Tensor, options: MaskedOptions) -> torch.Tensor:
    """Given tokens that the unconditional canvas masks: all but those to keep. -> (B, L) bool"""
    real = row_mask(canvas.lengths, input_ids.device)
    given = input_ids != canvas.mask_token_id
    kept = torch.isin(input_ids, torch.tensor(tuple(options.guidance_keep_tokens), device=input_ids.device))
    return given & ~kept if real is None else given & real & ~kept
