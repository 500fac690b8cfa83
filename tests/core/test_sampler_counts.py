"""What a run costs: calls of the model, positions through its body, rows through its head, waits for the device."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig

import dllm_core as dllm
from dllm_core.conformance.toy import ToyAdapter, ToyOutput

EOS, MASK, VOCAB, CONTEXT = 8, 9, 10, 256


class Writer(nn.Module):
    """A model that writes 0 everywhere, and an end of sequence at given positions, surer to the right."""

    def __init__(self, ends: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 1)
        self.head = nn.Linear(VOCAB, VOCAB, bias=False)
        nn.init.eye_(self.head.weight)
        self.config = PreTrainedConfig(max_position_embeddings=CONTEXT)
        tokens = torch.zeros(CONTEXT, dtype=torch.int64)
        tokens[list(ends)] = EOS
        scores = nn.functional.one_hot(tokens, VOCAB) * (1 + torch.arange(CONTEXT)[:, None] / CONTEXT)
        self.register_buffer("scores", scores)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids, attention_mask=None, position_ids=None) -> ToyOutput:
        return ToyOutput(self.head(self.scores[: input_ids.shape[1]].expand(len(input_ids), -1, -1)))


@dataclass
class Counts:
    """What the hooks on model and head saw."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    head_rows: list[int] = field(default_factory=list)


def counted(ends: tuple[int, ...] = (), **options: object) -> tuple[dllm.MDLMSampler, Counts]:
    model, seen = Writer(ends), Counts()
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    model.head.register_forward_hook(lambda _, inputs, out: seen.head_rows.append(out.shape[:-1].numel()))
    denoiser = dllm.Denoiser(model, ToyAdapter(), special_ids={"mask": MASK, "eos": EOS})
    return dllm.MDLMSampler(denoiser, **options), seen


def assert_stats(stats, seen: Counts) -> None:
    assert stats.forward_passes == len(seen.shapes)
    assert stats.positions_processed == sum(rows * width for rows, width in seen.shapes)
    assert stats.logit_rows == sum(seen.head_rows)


@pytest.mark.parametrize("steps", [1, 4, 8, 32])
def test_a_block_costs_its_steps_and_projects_only_its_masks(steps):
    sampler, seen = counted(max_new_tokens=16, block_size=8, steps=steps, stop_at_eos=False)
    out = sampler.sample([[1, 2, 3], [1]])
    a_block = min(-(-steps // 2), 8)  # steps of a block
    assert seen.shapes == [(2, 19)] * (2 * a_block)
    left = [8 - step * 8 // a_block for step in range(a_block)]
    assert seen.head_rows == [2 * n for n in left * 2]
    assert_stats(out.stats, seen)
    assert out.stats.tokens == 32
    assert out.stats.tokens_per_forward == 32 / (2 * a_block)
    assert out.stats.tokens_per_second == pytest.approx(32 / out.stats.seconds)
    assert out.stats.as_dict()["forward_passes"] == 2 * a_block


def test_guidance_doubles_the_rows_of_a_call_not_the_calls():
    sampler, seen = counted(max_new_tokens=4, steps=2, guidance_scale=1.0)
    out = sampler.sample([[1], [2]])
    assert seen.shapes == [(4, 5)] * 2
    assert seen.head_rows == [16, 8]
    assert_stats(out.stats, seen)


def test_an_end_of_sequence_drops_the_row_and_narrows_the_batch():
    """The longer row ends in its first block: the others go on without it, at their own width."""
    sampler, seen = counted((11,), max_new_tokens=12, block_size=4, steps_per_block=1)
    prompts = [[1] * 10, [2], [3, 4]]  # ends at position 11: blocks 0, 2 and 2
    steps = list(sampler.stream(prompts))
    assert seen.shapes == [(3, 22), (2, 14), (2, 14)]
    assert [step.done.tolist() for step in steps] == [[True, False, False], [True, False, False], [True, True, True]]
    out = sampler.sample(prompts)
    assert_stats(out.stats, Counts(seen.shapes[3:], seen.head_rows[3:]))
    assert out.sequences[0].tolist() == [1] * 10 + [0] + [EOS] * 1 + [0] * 2 + [EOS] * 8
    assert out.sequences[2, :14].tolist() == [3, 4] + [0] * 9 + [EOS] + [0] * 2
    assert out.stats.tokens == 1 + 10 + 9
    off, seen_off = counted((11,), max_new_tokens=12, block_size=4, steps_per_block=1, stop_at_eos=False)
    published = off.sample(prompts)
    assert seen_off.shapes == [(3, 22)] * 3
    assert published.stats.tokens == out.stats.tokens
    assert EOS not in published.sequences[0, 12:].tolist()


def test_an_end_of_turn_ends_a_row_too():
    model = Writer((3,))
    denoiser = dllm.Denoiser(model, ToyAdapter(), special_ids={"mask": MASK, "eot": EOS, "pad": 7})
    out = dllm.MDLMSampler(denoiser, max_new_tokens=8, block_size=2, steps_per_block=1).sample([[1, 1]])
    assert out.sequences.tolist() == [[1, 1, 0, EOS, 7, 7, 7, 7, 7, 7]]  # no end of sequence is known: filler
    assert out.stats.forward_passes == 1


def test_infilling_computes_only_rows_and_blocks_with_masks():
    sampler, seen = counted((2,), block_size=4, steps_per_block=4)
    short = [MASK, 1, MASK, 1]
    long = [1, 1, 1, MASK, 1, 1, 1, 1, 1, 1, MASK, 1]
    out = sampler.infill([short, long])
    # Block 0 in both rows: two steps, since its rows have at most two masks. Block 1: no mask. Block 2: the long row.
    assert seen.shapes == [(2, 12), (2, 12), (1, 12)]
    assert seen.head_rows == [4, 2, 1]
    assert out.sequences[0, :4].tolist() == [0, 1, EOS, 1]  # an end of sequence inside a text ends nothing
    assert out.stats.tokens == 4
    # The short row has blocks without masks behind it: it does not wait for them.
    sampler, seen = counted(block_size=2, steps_per_block=1)
    steps = []
    state = sampler.start_infill([[MASK, 1, 1, 1, 1, 1], [1, 1, MASK, 1]])
    while not state.finished:
        steps.append(sampler.step(state).done.tolist())
    assert steps == [[True, False], [True, True]]
    assert seen.shapes == [(2, 6), (1, 4)]


def test_a_batch_of_equal_lengths_needs_no_attention_mask():
    masks = []
    sampler, _ = counted(max_new_tokens=4, steps=1)
    sampler.denoiser.model.register_forward_pre_hook(
        lambda _, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    sampler.sample([[1, 2], [3, 4]])
    sampler.sample([[1, 2], [3]])
    assert masks[0] is None
    assert masks[1].tolist() == [[True] * 6, [True] * 5 + [False]]


class Waits(TorchDispatchMode):
    """Notes operations that would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique_dim"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 3, "confidence": "random", "confidence_temperature": 0.5},
        {"guidance_scale": 1.0, "confidence": "margin", "suppress_tokens": (1,), "suppress_confidence_tokens": (2,)},
        {"confidence": "entropy", "quota": "even"},
    ],
)
def test_no_step_waits_for_the_device(options):
    sampler, _ = counted(max_new_tokens=12, block_size=6, steps=8, **options)
    state = sampler.start([[1, 2, 3], [4]])
    waits = []
    while not state.finished:
        block = state.block
        with Waits() as mode:
            sampler.step(state)
        waits.append((len(mode.seen), state.block is block))
    assert [count for count, inside in waits if inside] == [0] * 6  # 4 steps a block, the last of which closes it
    assert all(count <= 2 for count, inside in waits if not inside)


def test_the_detector_sees_a_wait():
    with Waits() as mode:
        bool(torch.ones(2).any())
        torch.ones(2).nonzero()
        torch.ones(1).item()
    assert len(mode.seen) == 3
