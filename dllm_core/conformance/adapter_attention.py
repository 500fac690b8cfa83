"""Checks of who sees whom: direction, padding, patterns, and keys and values that were kept.

Shapes: B rows, L length, P cached positions, V vocabulary.
"""

from __future__ import annotations

import unittest

import torch
from torch import Tensor
from transformers import DynamicCache

from dllm_core.conformance.adapter_suite import LENGTHS, AdapterSuite, ragged, random_ids
from dllm_core.conformance.expect import expect, expect_close, expect_equal
from dllm_core.conformance.suite import requires
from dllm_core.models.attention import block_causal_pattern
from dllm_core.models.denoiser import Denoiser

LENGTH, BLOCK = 12, 4
NO_INFLUENCE = 1e-5  # differences of logits below it are rounding


class AttentionChecks(AdapterSuite):
    """Logits are compared on the rows as the model gives them, so that a shift of the family plays no part."""

    def test_attention_runs_in_the_declared_direction(self) -> None:
        """Changing any token changes the rows before and after it; with ``attends_both_ways = False`` those after only.

        Why: a causal mask left in a converted autoregressive model trains and samples without an error, and never
        looks at what stands right of a gap.

        Mend: pass ``is_causal=False`` and a bidirectional mask in every layer, in every attention implementation.
        """
        sees = _influence(self.denoiser(logits_are_shifted=False)).T > NO_INFLUENCE  # (row, changed token)
        want = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
        _expect_seen(sees, want if self.attends_both_ways else want.tril(), "let every layer attend so, or declare it")

    def test_a_row_is_the_same_alone_and_in_a_ragged_batch(self) -> None:
        """Padding a row, on the right or on the left, changes none of its logits.

        Why: published code that ignores the attention mask, or counts positions from the first column, gives other
        answers in a batch than alone (NVlabs/Fast-dLLM's attention, DreamLM/Dream issue 55).

        Mend: mask padded keys in every layer, and take the positions from ``position_ids``.
        """
        denoiser = self.denoiser()
        for side in ("right", "left"):
            ids, mask = ragged(denoiser, side)
            together = denoiser.logits(ids, mask).detach()
            for row, real in enumerate(mask):
                alone = denoiser.logits(ids[row, real][None]).detach()[0]
                what = f"row of {int(real.sum())} tokens, padded on the {side} to {ids.shape[1]}, and alone"
                expect_close(together[row, real], alone, what, tolerance=self.tolerance)

    def test_padding_is_not_seen(self) -> None:
        """Whatever tokens stand in padded columns, the logits of real ones stay, and all logits are finite.

        Why: a row of attention that sees nothing turns into NaN, and one NaN spoils the gradients of the whole batch.

        Mend: mask with the lowest finite number instead of minus infinity, or let padded queries see something.
        """
        denoiser = self.denoiser()
        for side in ("right", "left"):
            ids, mask = ragged(denoiser, side)
            other = torch.where(mask, ids, random_ids(denoiser, *ids.shape, seed=1))
            first, second = denoiser.logits(ids, mask).detach(), denoiser.logits(other, mask).detach()
            expect(
                first.isfinite().all(), f"padded on the {side}, logits hold NaN or infinity; mask with finite numbers"
            )
            what = f"padded on the {side}, logits with other tokens in the padding"
            expect_close(second[mask], first[mask], what, tolerance=self.tolerance)

    def test_eager_attention_is_sdpa(self) -> None:
        """The attention implementations ``eager`` and ``sdpa`` give the same logits, also with padding.

        Why: a bool mask is added as 0 and 1 by eager attention and obeyed by sdpa; one of the two is then wrong without
        an error.

        Mend: build masks with `dllm_core.models.as_model_mask` or ``transformers.masking_utils``.
        """
        model = self.model()
        missing = [name for name in ("eager", "sdpa") if not getattr(model, f"_supports_{name}", True)]
        if missing:
            raise unittest.SkipTest(f"{type(model).__name__} has no {missing[0]} attention")
        with self.saved(model) as folder:
            eager, sdpa = (self.load(folder, attn_implementation=name) for name in ("eager", "sdpa"))
        for name, loaded in (("eager", eager), ("sdpa", sdpa)):
            used = loaded.model.config._attn_implementation
            expect_equal(used, name, f"attention of a model loaded with attn_implementation={name!r}; pass it on")
        for side in ("right", "left"):
            ids, mask = ragged(sdpa, side)
            got, want = (loaded.logits(ids, mask).detach()[mask] for loaded in (eager, sdpa))
            expect_close(got, want, f"padded on the {side}, eager and sdpa attention", tolerance=self.tolerance)

    @requires("supports_block_causal")
    def test_block_causal_pattern_is_honoured(self) -> None:
        """With a block-causal pattern a block sees itself, in both directions, and the blocks before it, nothing else.

        Why: block diffusion is trained and decoded with this pattern; a leak from later blocks makes the loss look good
        and the text bad.

        Mend: use a 4-D attention mask as it is given, in every layer; declare ``supports_block_causal = False`` where
        the model cannot.
        """
        denoiser = self.denoiser(logits_are_shifted=False)
        pattern = block_causal_pattern(LENGTH, BLOCK)
        _expect_seen(_influence(denoiser, pattern).T > NO_INFLUENCE, pattern[0, 0], "obey the pattern in every layer")

    @requires("supports_block_causal")
    def test_patterns_may_differ_between_rows(self) -> None:
        """A pattern of its own for each row, (B, 1, L, L), that hides the padding gives each row what it gets alone.

        Why: packed documents, and prompts of different lengths on one block grid, need a pattern a row.

        Mend: broadcast over heads only; take the batch dimension of the pattern as it comes.
        """
        denoiser = self.denoiser()
        ids, mask = ragged(denoiser, "right")
        pattern = block_causal_pattern(ids.shape[1], BLOCK) & mask[:, None, None, :]
        together = denoiser.logits(ids, attention=pattern).detach()
        for row, length in enumerate(LENGTHS):
            alone = denoiser.logits(ids[row : row + 1, :length], attention=block_causal_pattern(length, BLOCK)).detach()
            what = f"row of {length} tokens with its own pattern, in a batch and alone"
            expect_close(together[row, :length], alone[0], what, tolerance=self.tolerance)

    @requires("supports_kv_cache")
    def test_cache_changes_nothing(self) -> None:
        """Keys and values of earlier positions, from a cache, give the logits of the whole pass; also with padding.

        Why: keys kept before their rotary embedding, positions that start at 0 again, or a mask of the wrong length
        give fluent, wrong text, only when the cache is on.

        Mend: pass keys and values through ``past_key_values.update`` after the rotation; take positions from
        ``position_ids``, else count on from the cache's length.
        """
        denoiser = self.denoiser(logits_are_shifted=False)
        for side in ("right", "left"):
            ids, mask = ragged(denoiser, side)
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            cache = DynamicCache()
            whole = denoiser.logits(ids, mask, position_ids=positions, cache=cache).detach()
            plain = denoiser.logits(ids, mask).detach()
            what = "logits with an empty cache and without one"
            expect_close(whole[mask], plain[mask], what, tolerance=self.tolerance)
            expect_equal(cache.get_seq_length(), ids.shape[1], "positions in the cache after a pass of all")
            start = ids.shape[1] - BLOCK
            cache.crop(-BLOCK)
            block = denoiser.logits(ids[:, start:], mask, position_ids=positions[:, start:], cache=cache).detach()
            what = f"padded on the {side}, the last {BLOCK} positions through a cache of the others and in a whole pass"
            real = mask[:, start:]
            expect_close(block[real], plain[:, start:][real], what, tolerance=self.tolerance)

    @requires("supports_kv_cache")
    @requires("supports_block_causal")
    @requires("attends_both_ways")
    def test_blocks_through_the_cache_are_the_block_causal_pass(self) -> None:
        """Block after block through the cache, positions counted on by themselves, is one pass with the pattern.

        Why: it is how block diffusion decodes; where the two differ, a model decodes what it was not trained on.

        Mend: count default positions on from ``cache.get_seq_length()``.
        """
        denoiser = self.denoiser(logits_are_shifted=False)
        ids = random_ids(denoiser, 2, LENGTH)
        want = denoiser.logits(ids, attention=block_causal_pattern(LENGTH, BLOCK)).detach()
        cache = DynamicCache()
        blocks = [denoiser.logits(block, cache=cache).detach() for block in ids.split(BLOCK, dim=1)]
        what = f"blocks of {BLOCK} through a cache, and one block-causal pass"
        expect_close(torch.cat(blocks, 1), want, what, tolerance=self.tolerance)


def _expect_seen(sees: Tensor, want: Tensor, mend: str) -> None:
    """Raise unless row i hangs on token j exactly where wanted; both (L, L) bool. A token may always see itself."""
    for row, token in (sees != want).nonzero().tolist():
        if row != token:
            does = "hangs" if sees[row, token] else "does not hang"
            blocks = f"blocks {row // BLOCK} and {token // BLOCK} of {BLOCK}"
            raise AssertionError(f"the row at {row} {does} on the token at {token} ({blocks}); {mend}")


def _influence(denoiser: Denoiser, pattern: Tensor | None = None) -> Tensor:
    """How much each row of logits changes with each token. -> (changed token, row) float"""
    ids = random_ids(denoiser, 1, LENGTH).expand(LENGTH + 1, -1).clone()  # (L + 1, L), the last row unchanged
    other = random_ids(denoiser, 64, seed=1).tolist()
    for position, token in enumerate(ids[-1].tolist()):
        ids[position, position] = next(candidate for candidate in other if candidate != token)
    logits = denoiser.logits(ids, attention=pattern).detach()
    return (logits[:-1] - logits[-1]).abs().amax(-1)
