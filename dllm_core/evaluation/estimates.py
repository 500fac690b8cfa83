"""Likelihoods with their standard errors: by Monte Carlo over masks, exactly where there are few, block by block.

For a target of T tokens the any-order bound is the mean over k = 1 ... T, and over the sets of k positions, of
(T / k) times the log-probability of the tokens at these positions when exactly they are masked. A *copy* is one such
set; the estimate is a weighted sum over copies. There are 2^T - 1 sets: where that is no more than the copies that may
be spent, each is computed once and the result is exact.

A block-diffusion model factorises: log p(target) is the sum over blocks of log p(block | everything before it), each
block a target of its own under block-causal attention.

Sources: LLaDA (arXiv 2502.09992), equation 6; BD3-LM (arXiv 2503.09573), equation 4 and section 3; for antithetic and
systematic draws Owen, Monte Carlo theory, methods and examples, chapters 8 and 10.

Shapes: C copies of one target, T target length, B rows of a batch, L row length, N masked tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dllm_core.config import at_least, one_of
from dllm_core.errors import OptionError, PromptError
from dllm_core.evaluation.likelihood import checked_text, masked_logits
from dllm_core.models import Denoiser
from dllm_core.models.attention import attention_from

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

LEVELS = ("antithetic", "stratified", "plain")
MAX_ENUMERATED = 16  # target tokens; 2^16 copies are more than anyone asks for


@dataclass(frozen=True)
class Estimate:
    """An estimated log-likelihood, in nats.

    Args:
        value: the estimate.
        standard_error: of the value; 0 where it is exact, an upper estimate for a single stratified batch.
        copies: masked copies that were computed.
    """

    value: float
    standard_error: float
    copies: int


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions:
    """How likelihoods are estimated.

    Args:
        mc_num: copies of each target, or of each of its blocks.
        batch_size: rows that go through the model at once; also the size of a stratified set of copies.
        levels: how the numbers of masks are drawn. ``antithetic``: in pairs k and T + 1 - k; ``stratified``: spread
            evenly over 1 ... T, as the official LLaDA code does; ``plain``: independently.
        guidance_scale: classifier-free guidance s, un + (s + 1)(cond - un), with the prompt masked in ``un``.
        block_size: of a block-diffusion model, blocks counted from position 0; None: one masked target, full attention.
        end_in_view: the end of sequence stands behind the target and can be seen, as in the official Dream code.
        seed: the same seed, prompt and target give the same copies in any batch.

    Raises:
        OptionError: a value out of range.
    """

    mc_num: int = 128
    batch_size: int = 32
    levels: str = "stratified"
    guidance_scale: float = 0.0
    block_size: int | None = None
    end_in_view: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("mc_num", "batch_size"):
            at_least(name, getattr(self, name), 1)
        at_least("guidance_scale", self.guidance_scale, 0)
        one_of("levels", self.levels, LEVELS)
        if self.block_size is not None:
            at_least("block_size", self.block_size, 1)
            if self.end_in_view:
                raise OptionError("end_in_view: blocks do not look ahead, so nothing behind them is in view; drop it")


@dataclass(frozen=True)
class Piece:
    """A target that is estimated as one: all of it, or one block.

    Args:
        prompt: tokens that guidance hides.
        before: tokens of the target in front of this piece.
        target: the tokens to score.
        after: tokens behind it that can be seen.
    """

    prompt: tuple[int, ...]
    before: tuple[int, ...]
    target: tuple[int, ...]
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Canvas:
    """What the model is shown of one copy. Copies of other targets may show the same, and are computed once.

    Args:
        prompt: tokens that guidance hides.
        rest: the tokens behind it, None where one is masked.
    """

    prompt: tuple[int, ...]
    rest: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.rest)


@dataclass(frozen=True)
class Copies:
    """The masked copies of one piece.

    Args:
        masked: (C, T) bool.
        weights: (C,) float64, what the log-probability of a copy counts for.
        group: copies that depend on one another; 0 where all sets are there and nothing was drawn.
    """

    masked: Tensor
    weights: Tensor
    group: int


@torch.no_grad()
def estimate(
    denoiser: Denoiser, texts: Sequence[tuple[Sequence[int], Sequence[int]]], options: LikelihoodOptions
) -> list[Estimate]:
    """Estimate log p(target | prefix) of each pair, in nats; rows of all of them share batches.

    Args:
        texts: pairs (prefix, target) of token ids; a prefix may be empty.

    Raises:
        OptionError: the family takes no block-causal attention, and ``block_size`` is given.
        PromptError: a target is empty, a text does not fit the context, or holds mask tokens or what is no id.
    """
    pieces = [split(denoiser, *text, options) for text in texts]
    work = [(piece, draw_copies(piece, options)) for own in pieces for piece in own]
    scored = zip(_scores(denoiser, work, options), (copies for _, copies in work), strict=True)
    return [_total([_piece_estimate(*next(scored)) for _ in own]) for own in pieces]


def split(denoiser: Denoiser, prefix: Sequence[int], target: Sequence[int], options: LikelihoodOptions) -> list[Piece]:
    """The pieces of a target, blocks counted from the beginning of the prefix.

    Raises:
        PromptError: as `estimate`.
    """
    after = _end(denoiser) if options.end_in_view else ()
    checked = checked_text(denoiser, prefix, [*target, *after] if len(target) else target)
    prefix, target = (tuple(ids.tolist()) for ids in checked)
    target = target[: len(target) - len(after)]
    cuts = [0, *itertools.accumulate(piece_lengths(len(prefix), len(target), options.block_size))]
    return [Piece(prefix, target[:begin], target[begin:end], after) for begin, end in itertools.pairwise(cuts)]


def piece_lengths(prefix: int, target: int, block_size: int | None) -> list[int]:
    """How many tokens of a target of `target` tokens each piece has, behind `prefix` others."""
    if block_size is None:
        return [target]
    stop = prefix + target
    ends = [*range((prefix // block_size + 1) * block_size, stop, block_size), stop]
    return [end - begin for begin, end in itertools.pairwise([prefix, *ends])]


def number_of_copies(length: int, mc_num: int) -> int:
    """How many copies a piece of `length` tokens has: all sets of positions where ``mc_num`` allows it."""
    return mc_num if length > MAX_ENUMERATED else min(mc_num, 2**length - 1)


def draw_copies(piece: Piece, options: LikelihoodOptions) -> Copies:
    """All sets of positions where ``mc_num`` allows it, otherwise ``mc_num`` random ones."""
    length = len(piece.target)
    if number_of_copies(length, options.mc_num) == 2**length - 1:
        return enumerate_copies(length)
    generator = torch.Generator().manual_seed(_seed_of(piece, options.seed))
    masked = torch.cat(list(_draw_sets(length, options, generator)))[: options.mc_num]  # (C, T)
    group = {"plain": 1, "antithetic": 2, "stratified": options.batch_size}[options.levels]
    return Copies(masked, length / masked.sum(1).double() / len(masked), group)


def enumerate_copies(length: int) -> Copies:
    """Every non-empty set of positions once, weighted by how often it is drawn."""
    masked = torch.tensor(list(itertools.product((False, True), repeat=length)))[1:]  # (2^T - 1, T)
    counts = masked.sum(1).tolist()
    weights = torch.tensor([1 / (count * math.comb(length, count)) for count in counts], dtype=torch.float64)
    return Copies(masked, weights, 0)


def _draw_sets(length: int, options: LikelihoodOptions, generator: torch.Generator) -> Iterator[Tensor]:
    """Sets (C, T) bool, in groups that are independent of one another, ``mc_num`` or one more in all."""
    for begin in range(0, options.mc_num, options.batch_size if options.levels == "stratified" else options.mc_num):
        size = min(options.batch_size, options.mc_num - begin) if options.levels == "stratified" else options.mc_num
        if options.levels == "antithetic":
            yield _pairs(length, -(-size // 2), generator)
            continue
        spread = torch.arange(size) * length // size
        starts = torch.randint(length, (1,) if options.levels == "stratified" else (size,), generator=generator)
        counts = (starts + (spread if options.levels == "stratified" else 0)) % length + 1
        yield _ranks(size, length, generator) < counts[:, None]


def _pairs(length: int, pairs: int, generator: torch.Generator) -> Tensor:
    """Pairs of sets of k and of T + 1 - k positions, drawn apart from each other. -> (2 pairs, T)

    Complementary sets would tie the positions too, but they are no gain: where one token is much harder than the
    others, it counts T / k times in the small set, and the large set holds it nearly always.
    """
    counts = torch.randint(1, length + 1, (pairs, 1), generator=generator)
    both = torch.cat([counts, length + 1 - counts], 1).reshape(-1, 1)  # (2 pairs, 1)
    return _ranks(2 * pairs, length, generator) < both


def _ranks(rows: int, length: int, generator: torch.Generator) -> Tensor:
    return torch.rand(rows, length, generator=generator).argsort(1).argsort(1)


def _end(denoiser: Denoiser) -> tuple[int, ...]:
    if denoiser.eos_token_id is None:
        raise PromptError("end_in_view: the model has no end-of-sequence token; leave the option out")
    return (denoiser.eos_token_id,)


def _seed_of(piece: Piece, seed: int) -> int:
    """A seed of the piece's own, so that its copies do not depend on what else is estimated."""
    content = repr((seed, piece.prompt, piece.before, piece.target)).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "big")


def _scores(denoiser: Denoiser, work: Sequence[tuple[Piece, Copies]], options: LikelihoodOptions) -> Iterator[Tensor]:
    """The log-probabilities (C,) of every piece's copies. A canvas goes through the model once, whoever shares it."""
    asked: dict[Canvas, list[tuple[int, list[int]]]] = {}  # -> number of the copy, its masked tokens
    numbers = itertools.count()
    for piece, copies in work:
        for masked in copies.masked.tolist():
            shown = (None if hidden else token for token, hidden in zip(piece.target, masked, strict=True))
            canvas = Canvas(piece.prompt, (*piece.before, *shown, *piece.after))
            asked.setdefault(canvas, []).append((next(numbers), list(itertools.compress(piece.target, masked))))
    scores = torch.empty(next(numbers), dtype=torch.float64)
    canvases = list(asked)
    for begin in range(0, len(canvases), options.batch_size):
        batch = canvases[begin : begin + options.batch_size]
        wanted = [[tokens for _, tokens in asked[canvas]] for canvas in batch]
        scores[[number for canvas in batch for number, _ in asked[canvas]]] = _canvas_scores(
            denoiser, batch, wanted, options
        )
    yield from scores.split([len(copies.masked) for _, copies in work])


def _canvas_scores(
    denoiser: Denoiser,
    canvases: Sequence[Canvas],
    wanted: Sequence[Sequence[Sequence[int]]],
    options: LikelihoodOptions,
) -> Tensor:
    """The summed log-probability of tokens at the masks of canvases, in float64 on the CPU, one canvas after the other.

    Args:
        wanted: of each canvas the texts that may stand at its masks.
    """
    device, mask = denoiser.device, denoiser.mask_token_id
    lengths = torch.tensor([len(canvas) for canvas in canvases], device=device)
    places = torch.arange(int(lengths.max()), device=device).expand(len(canvases), -1)  # (B, L)
    real = places < lengths[:, None]
    noisy = torch.full(places.shape, denoiser.pad_token_id, dtype=torch.int64, device=device)
    tokens = [mask if token is None else token for canvas in canvases for token in (*canvas.prompt, *canvas.rest)]
    noisy[real] = torch.tensor(tokens, device=device)
    prompts = torch.tensor([len(canvas.prompt) for canvas in canvases], device=device)
    logits = masked_logits(
        denoiser,
        noisy,
        (noisy == mask) & real,  # texts hold no mask token of their own
        places < prompts[:, None],
        options.guidance_scale,
        attention_mask=None if bool(real.all()) else real,
        attention=_attention(denoiser, real, options.block_size),
    )  # (N, V)
    return _picked(logits.log_softmax(-1), [canvas.rest.count(None) for canvas in canvases], wanted)


def _picked(scores: Tensor, masks: Sequence[int], wanted: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Sums over the scores (N, V) of texts; row after row is a mask, `masks` of them each canvas."""
    rows, tokens, texts, number, first = [], [], [], 0, 0
    for count, own in zip(masks, wanted, strict=True):
        for text in own:
            rows += range(first, first + count)
            tokens += text
            texts += [number] * count
            number += 1
        first += count
    picked = scores[rows, tokens].double().cpu()
    return torch.zeros(number, dtype=torch.float64).index_add(0, torch.tensor(texts), picked)


def _attention(denoiser: Denoiser, real: Tensor, block_size: int | None) -> Tensor | BlockMask | None:
    if block_size is None:
        return None
    rows, length = real.shape

    def allowed(row: Tensor, head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        return (query // block_size >= key // block_size) & (real[row, key] | (query == key))

    how = denoiser.attention_implementation
    return attention_from(allowed, rows=rows, queries=length, keys=length, implementation=how, device=real.device)


def _piece_estimate(scores: Tensor, copies: Copies) -> Estimate:
    terms = scores * copies.weights  # (C,)
    error = 0.0 if copies.group == 0 else _standard_error(terms * len(terms), copies.group)
    return Estimate(float(terms.sum()), error, len(terms))


def _standard_error(values: Tensor, group: int) -> float:
    """Of the mean of `values` (C,), which depend on one another within groups; nan where one value is all there is.

    A single group is taken apart: what it was spread for only makes the true error smaller.
    """
    means = torch.stack([part.mean() for part in values.split(group)]) if len(values) >= 2 * group else values
    if len(means) < 2:
        return math.nan
    return float(means.std() / math.sqrt(len(means)))


def _total(parts: Sequence[Estimate]) -> Estimate:
    """Independent estimates added up."""
    error = math.sqrt(sum(part.standard_error**2 for part in parts))
    return Estimate(sum(part.value for part in parts), error, sum(part.copies for part in parts))
