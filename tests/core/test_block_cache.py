"""The block cache against full forwards, on models of transformers and with rows that stand at different positions."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import dllm_core as dllm
from dllm_core.conformance.counting import counted
from dllm_core.errors import OptionError
from dllm_core.models.cache import BlockCache

VOCAB, MASK, LAYERS = 40, 39, 3
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
GROUPED = SMALL | {"num_key_value_heads": 2, "intermediate_size": 48}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**GROUPED)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**GROUPED)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**GROUPED, head_dim=16)),
    "gemma": (GemmaForCausalLM, GemmaConfig(**GROUPED, head_dim=16)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64)),
}


class AnyAdapter(dllm.ModelAdapter):
    supports_kv_cache = True
    supports_block_causal = True


@cache
def model(family: str, implementation: str = "sdpa") -> PreTrainedModel:
    model_class, config = FAMILIES[family]
    config._attn_implementation = implementation
    torch.manual_seed(0)
    made = model_class(config).double().eval()
    made.config.is_causal = False
    return made


def denoiser(family: str, shifted: bool = False, implementation: str = "sdpa") -> dllm.Denoiser:
    special = {"mask": MASK, "eos": 1, "pad": 0}
    return dllm.Denoiser(model(family, implementation), AnyAdapter(), special_ids=special, logits_are_shifted=shifted)


def full(rows: int, queries: int, keys: int) -> torch.Tensor:
    return torch.ones(rows, 1, queries, keys, dtype=torch.bool)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_overwriting_a_block_in_place_is_a_full_forward(family, implementation):
    """Row 0 stands at position 2, row 1 at position 5; the tokens are the same, so nothing that is kept is stale."""
    one = denoiser(family, implementation=implementation)
    ids = torch.randint(0, MASK, (2, 9), generator=torch.Generator().manual_seed(1))
    kept = BlockCache(2, 9)
    columns = torch.arange(9).expand(2, -1)
    kept.place(columns, 9)
    first = one.logits(ids, attention=full(2, 9, 9), position_ids=columns, cache=kept)
    torch.testing.assert_close(first, one.logits(ids), rtol=1e-10, atol=1e-10)
    block = torch.tensor([[2], [5]]) + torch.arange(3)
    kept.place(block, 9)
    again = one.logits(ids.gather(1, block), attention=full(2, 3, 9), position_ids=block, cache=kept)
    torch.testing.assert_close(again, first.gather(1, block[..., None].expand(-1, -1, VOCAB)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_new_tokens_in_the_block_are_seen_and_old_ones_are_not(family):
    """The prefix looks at itself only, so a block may be written as often as one likes: always the full forward."""
    one = denoiser(family)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, MASK, (2, 8), generator=generator)
    starts = torch.tensor([[3], [5]])  # each row's block is [start, start + 3), behind it is nothing
    columns = torch.arange(8).expand(2, -1)
    pattern = (columns[:, None] < starts[:, None]) | (columns[..., None] >= starts[:, None])  # (2, L, K)
    pattern = (pattern & (columns[:, None] < starts[:, None] + 3))[:, None]
    kept = BlockCache(2, 8)
    kept.place(columns, 8)
    one.logits(ids, attention=pattern, position_ids=columns, cache=kept)
    block = starts + torch.arange(3)
    for _ in range(3):
        ids = ids.scatter(1, block, torch.randint(0, MASK, (2, 3), generator=generator))
        rows = pattern.expand(2, 1, 8, 8).gather(2, block[:, None, :, None].expand(-1, 1, -1, 8))
        kept.place(block, 8)
        got = one.logits(ids.gather(1, block), attention=rows, position_ids=block, cache=kept)
        want = one.logits(ids, attention=pattern, at=block)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_memory_is_known_before_it_is_taken(family):
    one = denoiser(family)
    kept = BlockCache(3, 10)
    needed = BlockCache.bytes_needed(one.model.config, 3, 10, torch.float64)
    kept.place(torch.arange(4).expand(3, -1), 4)
    with counted(one) as counts:
        one.logits(torch.ones(3, 4, dtype=torch.int64), attention=full(3, 4, 4), cache=kept)
    assert counts.cache_bytes == needed
    assert len(kept.layers) == LAYERS


def write(kept: BlockCache, value: float, slots: list[list[int]], stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    kept.place(torch.tensor(slots), stop)
    states = torch.full((kept.rows, 1, len(slots[0]), 2), value)
    return kept.update(states, -states, 0)


def test_slots_are_written_in_place_and_nowhere_is_never_read():
    kept = BlockCache(2, 4)
    assert kept.get_seq_length() == 0
    keys, values = write(kept, 1.0, [[0, 1], [0, kept.nowhere]], 3)
    assert keys[:, 0, :, 0].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert torch.equal(values, -keys)
    pointer = kept.layers[0].keys.data_ptr()
    keys, _ = write(kept, 2.0, [[1, 3], [2, 0]], 4)
    assert keys[:, 0, :, 0].tolist() == [[1, 2, 0, 2], [2, 0, 2, 0]]
    assert kept.layers[0].keys.data_ptr() == pointer
    assert kept.get_seq_length() == 4
    assert kept.get_mask_sizes(2, 0) == (4, 0)


def test_rows_that_are_finished_give_their_memory_back():
    kept = BlockCache(3, 2)
    for row, value in enumerate((1.0, 2.0, 3.0)):
        slots = [[kept.nowhere]] * 3
        slots[row] = [0]
        write(kept, value, slots, 1)
    before = kept.layers[0].keys.nbytes
    kept.select(torch.tensor([2, 0]))
    keys, _ = write(kept, 9.0, [[1], [1]], 2)
    assert keys[:, 0, :, 0].tolist() == [[3, 9], [1, 9]]
    assert kept.layers[0].keys.nbytes * 3 == before * 2


def test_copies_of_a_row_go_on_from_the_one_that_is_followed():
    kept = BlockCache(2, 4)
    kept.place(torch.tensor([[0, 1], [0, kept.nowhere]]), 4)
    kept.update(*[torch.tensor([[5.0, 5.0], [6.0, 6.0]])[:, None, :, None]] * 2, 0)
    kept.fork(3)
    kept.place(torch.tensor([[1, 2]] * 3 + [[0, 1], [kept.nowhere] * 2, [0, 1]]), 4)  # one has nothing left to write
    ways = torch.arange(10.0, 16.0)[:, None].expand(-1, 2)[:, None, :, None]
    kept.update(ways, ways, 0)
    kept.follow(torch.tensor([2, 4]))
    assert held(kept) == [[5, 12, 12, 0]] * 3 + [[6, 0, 0, 0]] * 3
    kept.place(torch.tensor([[3], [3]]), 4)  # one canvas a row again: of the first copies
    one = torch.tensor([20.0, 21.0])[:, None, None, None]
    keys, _ = kept.update(one, one, 0)
    assert keys[:, 0, :, 0].tolist() == [[5, 12, 12, 20], [6, 0, 0, 21]]
    kept.select(torch.tensor([1]))
    kept.fork(3)
    assert held(kept) == [[6, 0, 0, 21]] * 3


def held(kept: BlockCache) -> list[list[float]]:
    keys, values = kept.layers[0].keys, kept.layers[0].values
    assert torch.equal(keys, values)
    return keys[:, 0, : kept.length, 0].tolist()


@torch.no_grad()
def test_what_nobody_wrote_is_zero_and_so_never_nan():
    """A masked key enters the sum with weight 0; 0 times whatever the memory held must be 0."""
    kept = BlockCache(1, 1000)
    kept.place(torch.zeros(1, 1, dtype=torch.int64), 1000)
    pattern = torch.arange(1000)[None, None, None] < 1
    one = denoiser("llama")
    got = one.logits(torch.tensor([[3]]), attention=pattern, cache=kept)
    torch.testing.assert_close(got, one.logits(torch.tensor([[3]])))


# -- right-shifted logits ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_shifted_family_carries_the_scores_of_a_blocks_first_token_over():
    one = denoiser("qwen3", shifted=True)
    ids = torch.randint(0, MASK, (1, 6), generator=torch.Generator().manual_seed(3))
    columns = torch.arange(6)[None]
    pattern = (columns[..., None] // 3 >= columns[:, None] // 3)[:, None]  # blocks of three
    want = one.logits(ids, attention=pattern)
    kept = BlockCache(1, 6)
    kept.place(columns[:, :3], 3)
    one.logits(ids[:, :3], attention=pattern[..., :3, :3], cache=kept)
    kept.place(columns[:, 3:], 6)
    second = {"position_ids": columns[:, 3:], "attention": pattern[:, :, 3:], "cache": kept}
    with pytest.raises(OptionError, match=r"right-shifted logits .* give lead="):
        one.logits(ids[:, 3:], **second)
    got = one.logits(ids[:, 3:], lead=want[:, 3], **second)
    torch.testing.assert_close(got, want[:, 3:])
    some = one.logits(ids[:, 3:], lead=want[:, 3], at=torch.tensor([[2, 0]]), **second)
    torch.testing.assert_close(some, want[:, [5, 3]])


@torch.no_grad()
def test_a_rows_first_token_keeps_its_own_scores_and_plain_families_ignore_the_lead():
    ids, columns = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.arange(3)[None] + torch.tensor([[0], [3]])
    for shifted in (False, True):
        one = denoiser("llama", shifted=shifted)
        plain = one.logits(ids, position_ids=columns)
        led = one.logits(ids, position_ids=columns, lead=torch.zeros(2, VOCAB, dtype=torch.float64))
        changed = (led != plain).any(-1)
        assert changed.tolist() == [[False] * 3, [shifted, False, False]]
