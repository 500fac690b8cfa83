"""Block diffusion and packing: masks, exact laws on an enumerable toy, what leaks and what does not.

Shapes: B batch, L length, V data tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from dllm_a2d.models import A2DLlamaConfig, A2DLlamaLMHeadModel
from dllm_llada import LLaDAConfig, LLaDAModelLM
from hypothesis import given, settings
from hypothesis import strategies as st

import dllm_core as dllm
from dllm_core.conformance.toy import random_joint, toy_denoiser
from dllm_core.errors import DataError, OptionError
from dllm_core.models import attention
from dllm_core.models.attention import as_model_mask, even_block_diffusion
from dllm_core.noise.corruption import sample_segment_times
from dllm_core.objectives.base import document_positions

VOCAB, LENGTH = 3, 4
MASK = VOCAB


def by_hand(length: int, size: int) -> torch.Tensor:
    """The three-part mask as the paper draws it: four quarters."""
    block = torch.arange(length) // size
    same, before = block[:, None] == block, block[:, None] > block
    upper = torch.cat([same, before], 1)
    lower = torch.cat([torch.zeros_like(same), same | before], 1)
    return torch.cat([upper, lower])


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 33), size=st.integers(1, 40))
def test_the_mask_has_the_papers_three_parts(length, size):
    even_block_diffusion.cache_clear()
    got = even_block_diffusion(length, size, "sdpa", torch.device("cpu"))
    assert torch.equal(got[0, 0], by_hand(length, size))


def test_a_mask_is_built_once_for_a_length(monkeypatch):
    built = []
    real = attention.attention_from
    monkeypatch.setattr(attention, "attention_from", lambda *a, **k: built.append(k) or real(*a, **k))
    even_block_diffusion.cache_clear()
    denoiser = toy_denoiser(random_joint(VOCAB, LENGTH, seed=0))
    objective = dllm.objective("bd3lm", block_size=2)
    batch = {"input_ids": torch.zeros(2, LENGTH, dtype=torch.long)}
    for seed in range(5):
        objective.loss(
            denoiser, batch, objective.corrupt(batch, denoiser, generator=torch.Generator().manual_seed(seed))
        )
    assert len(built) == 1


# ---------------------------------------------------------------------------------------------------- exact laws


def texts() -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))


@torch.no_grad()
def expected_loss(objective, joint: torch.Tensor) -> float:
    """The loss of the bound, averaged over all texts, all masks and all times; exactly, one time for all blocks."""
    denoiser = toy_denoiser(joint)
    ids = texts()
    weight = joint.reshape(-1).double()
    total = 0.0
    for hidden in itertools.product([False, True], repeat=LENGTH):
        masked = torch.tensor(hidden).expand_as(ids)
        if not any(hidden):
            continue
        corrupted = ids.masked_fill(masked, MASK)
        nll = objective.token_nll(denoiser, {"input_ids": ids}, _corruption(corrupted, masked), masked)
        per_text = nll.double().view(len(ids), -1).sum(1)
        # Integral of w(t) P(hidden | t) dt with w = 1 / t and P = t^k (1 - t)^(L - k): the Beta function.
        k = sum(hidden)
        beta = torch.lgamma(torch.tensor([float(k), LENGTH - k + 1.0, LENGTH + 1.0])).double()
        total += float((weight * per_text).sum() * (beta[0] + beta[1] - beta[2]).exp())
    return total


def _corruption(ids, masked):
    return dllm.Corruption(input_ids=ids, masked=masked, time=torch.full((len(ids),), 0.5))


def conditional_entropies(joint: torch.Tensor) -> list[float]:
    """H(x_i | x_<i) of each position, in nats."""
    found, before = [], 0.0
    for i in range(LENGTH):
        marginal = joint.sum(tuple(range(i + 1, LENGTH))) if i + 1 < LENGTH else joint
        entropy = float(torch.special.entr(marginal.double()).sum())
        found.append(entropy - before)
        before = entropy
    return found


def test_the_expected_losses_are_the_true_bounds_which_for_an_ideal_model_are_the_entropy():
    joint = random_joint(VOCAB, LENGTH, seed=3)
    entropy = sum(conditional_entropies(joint))
    for objective in (dllm.objective("mdlm"), *(dllm.objective("bd3lm", block_size=size) for size in (1, 2, 3, 4))):
        assert expected_loss(objective, joint) == pytest.approx(entropy, abs=1e-4)


BROKEN_MASKS = {
    "a block sees its own clean tokens": lambda near, far, noisy, clean: (
        ((near == far) & (noisy == clean)) | ((near >= far) & clean)
    ),
    "blocks see later noised ones": lambda near, far, noisy, clean: (noisy == clean) | ((near > far) & clean),
    "the clean context is left out": lambda near, far, noisy, clean: (near == far) & (noisy == clean),
}


@pytest.mark.parametrize("name", BROKEN_MASKS)
def test_a_broken_mask_misses_the_entropy(name, monkeypatch):
    joint = random_joint(VOCAB, LENGTH, seed=3)
    monkeypatch.setattr(attention, "_three_parts", BROKEN_MASKS[name])
    even_block_diffusion.cache_clear()
    found = expected_loss(dllm.objective("bd3lm", block_size=2), joint)
    even_block_diffusion.cache_clear()
    assert found != pytest.approx(sum(conditional_entropies(joint)), abs=1e-2)


def test_drawn_losses_are_unbiased_for_the_bound():
    joint = random_joint(VOCAB, LENGTH, seed=3)
    denoiser, entropy = toy_denoiser(joint), sum(conditional_entropies(joint))
    generator = torch.Generator().manual_seed(0)
    for options in ({"time_per": "block"}, {"time_per": "sequence"}, {"low_discrepancy": True}):
        objective = dllm.objective("bd3lm", block_size=2, time_epsilon=0.0, **options)
        draws = []
        for _ in range(60):
            rows = torch.multinomial(joint.reshape(-1), 128, replacement=True, generator=generator)
            batch = {"input_ids": texts()[rows]}
            output = objective.loss(denoiser, batch, objective.corrupt(batch, denoiser, generator=generator))
            draws.append(float(output.nll_sum) / 128)
        draws = torch.tensor(draws)
        error = draws.std() / len(draws) ** 0.5
        assert abs(draws.mean() - entropy) < 4 * error, options


def test_block_size_one_is_the_autoregressive_likelihood_exactly():
    joint = random_joint(VOCAB, LENGTH, seed=5)
    denoiser, ids = toy_denoiser(joint), texts()
    masked = torch.ones_like(ids, dtype=torch.bool)
    objective = dllm.objective("bd3lm", block_size=1, weighting="uniform")
    nll = objective.token_nll(denoiser, {"input_ids": ids}, _corruption(ids.masked_fill(masked, MASK), masked), masked)
    want = -joint.reshape(-1).double().log()
    torch.testing.assert_close(nll.double().view(len(ids), -1).sum(1), want, atol=1e-4, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------- noise


def test_low_discrepancy_spreads_a_batch_and_leaves_each_block_uniform():
    segments = (torch.arange(16) // 4).expand(8, 16)
    generator = torch.Generator().manual_seed(0)
    first, counts = [], []
    for _ in range(600):
        time = sample_segment_times(segments, low=0.0, high=1.0, low_discrepancy=True, generator=generator)
        assert (time.view(8, 4, 4) == time.view(8, 4, 4)[..., :1]).all()
        strata = (time[:, ::4] * 32).long().flatten().sort().values
        counts.append(torch.equal(strata, torch.arange(32)))
        first.append(float(time[0, 0]))
    assert all(counts)
    spread = torch.tensor(first).sort().values - (torch.arange(600) + 0.5) / 600
    assert spread.abs().max() < 1.63 / 600**0.5  # Kolmogorov and Smirnov, 1 %


@pytest.mark.parametrize("low_discrepancy", [False, True])
def test_the_noise_range_clips_training_and_not_evaluation(low_discrepancy):
    denoiser = toy_denoiser(random_joint(VOCAB, LENGTH, seed=0))
    objective = dllm.objective("bd3lm", block_size=2, noise_range=(0.3, 0.8), low_discrepancy=low_discrepancy)
    batch = {"input_ids": torch.zeros(500, LENGTH, dtype=torch.long)}
    time = objective.corrupt(batch, denoiser, generator=torch.Generator().manual_seed(0)).time
    assert 0.3 <= time.min() < 0.31
    assert 0.79 < time.max() <= 0.8
    whole = objective.for_evaluation()
    time = whole.corrupt(batch, denoiser, generator=torch.Generator().manual_seed(0)).time
    assert time.min() < 0.01
    assert time.max() > 0.99


# ------------------------------------------------------------------------------------------------ real architectures


def small(family: str, implementation: str = "sdpa") -> dllm.Denoiser:
    if family == "llada":
        config = LLaDAConfig(
            vocab_size=20, d_model=16, n_layers=2, n_heads=2, mlp_hidden_size=24, max_sequence_length=64
        )
        kind = LLaDAModelLM
    else:
        config = A2DLlamaConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=24, max_position_embeddings=64,
        )  # fmt: skip
        kind = A2DLlamaLMHeadModel
    config._attn_implementation = implementation
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    adapter = dllm.registry.load("adapter", dllm.registry.adapter_for_model_type(config.model_type).full_id)()
    return dllm.Denoiser(model.double().eval(), adapter, special_ids={"mask": 19, "pad": 18})


def score(objective, denoiser, batch, corruption):
    denoiser.model.zero_grad()
    output = objective.loss(denoiser, batch, corruption, normalizer=torch.tensor(1))
    output.loss.backward()
    return output.loss.detach(), torch.cat([p.grad.flatten() for p in denoiser.model.parameters()])


PACKED = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, -1, -1]])


@pytest.mark.parametrize("family", ["llada", "a2d"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "options"), [("mdlm", {}), ("bd3lm", {"block_size": 2}), ("bd3lm", {"block_size": 3})]
)
def test_packed_documents_add_up_to_the_documents_alone(family, implementation, name, options):
    denoiser, objective = small(family, implementation), dllm.objective(name, **options)
    ids = torch.randint(18, PACKED.shape, generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "document_ids": PACKED}
    corruption = objective.corrupt(batch, denoiser, generator=torch.Generator().manual_seed(4))
    assert corruption.masked.any()
    assert not corruption.masked[PACKED < 0].any()
    loss, gradient = score(objective, denoiser, batch, corruption)
    alone = []
    for document in range(3):
        here = (document == PACKED)[0]
        own = {"input_ids": ids[:, here]}
        cut = replace(
            corruption, input_ids=corruption.input_ids[:, here], masked=corruption.masked[:, here],
            time=corruption.time[:, here],
        )  # fmt: skip
        alone.append(score(objective, denoiser, own, cut))
    # Eager attention takes its softmax in float32 whatever the model's type.
    close = {"atol": 1e-9, "rtol": 1e-7} if implementation == "sdpa" else {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(loss, sum(part[0] for part in alone), **close)
    torch.testing.assert_close(gradient, sum(part[1] for part in alone), **close)


@pytest.mark.parametrize("family", ["llada", "a2d"])
@pytest.mark.parametrize(("name", "options"), [("mdlm", {}), ("bd3lm", {"block_size": 2})])
def test_nothing_leaks_between_packed_documents(family, name, options):
    denoiser, objective = small(family), dllm.objective(name, **options)
    ids = torch.randint(18, PACKED.shape, generator=torch.Generator().manual_seed(1))
    masked = (PACKED == 1) & (torch.arange(14) % 2 == 0)
    batch = {"input_ids": ids, "document_ids": PACKED}
    corruption = replace(_corruption(ids.masked_fill(masked, 19), masked), time=torch.full(PACKED.shape, 0.5))
    want = score(objective, denoiser, batch, corruption)
    for column in (PACKED != 1)[0].nonzero().flatten().tolist():
        other = ids.clone()
        other[0, column] = (other[0, column] + 1) % 18
        got = score(
            objective,
            denoiser,
            batch | {"input_ids": other},
            replace(corruption, input_ids=other.masked_fill(masked, 19)),
        )
        torch.testing.assert_close(got[0], want[0], atol=0, rtol=1e-12)


@pytest.mark.parametrize("family", ["llada", "a2d"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_respected_on_either_side(family, side):
    denoiser, objective = small(family), dllm.objective("bd3lm", block_size=2)
    ids = torch.randint(18, (1, 6), generator=torch.Generator().manual_seed(1))
    corruption = objective.corrupt({"input_ids": ids}, denoiser, generator=torch.Generator().manual_seed(3))
    want = score(objective, denoiser, {"input_ids": ids}, corruption)
    pad = (0, 3) if side == "right" else (3, 0)
    grow = lambda tensor, value: torch.nn.functional.pad(tensor, pad, value=value)  # noqa: E731
    batch = {"input_ids": grow(ids, 18), "attention_mask": grow(torch.ones_like(ids), 0)}
    grown = dllm.Corruption(
        input_ids=grow(corruption.input_ids, 18), masked=grow(corruption.masked, False), time=grow(corruption.time, 0.5)
    )
    got = score(objective, denoiser, batch, grown)
    torch.testing.assert_close(got[0], want[0], atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(got[1], want[1], atol=1e-9, rtol=1e-7)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("family", ["llada", "a2d"])
@pytest.mark.parametrize("packed", [False, True])
def test_flex_attention_scores_as_sdpa_does(family, packed):
    objective = dllm.objective("bd3lm", block_size=4)
    ids = torch.randint(18, (2, 16), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids} | ({"document_ids": (torch.arange(16) // 7).expand(2, -1)} if packed else {})
    losses = []
    for implementation in ("sdpa", "flex_attention"):
        denoiser = small(family, implementation)
        denoiser.model.float()
        corruption = objective.corrupt(batch, denoiser, generator=torch.Generator().manual_seed(3))
        losses.append(objective.loss(denoiser, batch, corruption).loss)
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------- errors


def test_a_dense_pattern_never_reaches_flex_attention():
    pattern = even_block_diffusion(4, 2, "sdpa", torch.device("cpu"))
    with pytest.raises(OptionError, match="flex_attention"):
        as_model_mask(pattern, "flex_attention", torch.float32)
    block_mask = even_block_diffusion(4, 2, "flex_attention", torch.device("cpu"))
    with pytest.raises(OptionError, match="BlockMask"):
        as_model_mask(block_mask, "sdpa", torch.float32)


def test_a_block_size_that_does_not_divide_is_refused_with_the_way_out():
    objective = dllm.objective("bd3lm", block_size=4)
    objective.check_batch({"input_ids": torch.zeros(1, 8)})
    whole = {"input_ids": torch.zeros(1, 8)}
    mask, packed = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]]), torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    objective.check_batch(whole | {"attention_mask": mask})
    objective.check_batch(whole | {"document_ids": packed})
    mask[0, 4:6], packed[0, 3] = 1, 1
    for batch, length in (
        ({"input_ids": torch.zeros(1, 10)}, 10),
        (whole | {"attention_mask": mask}, 6),
        (whole | {"document_ids": packed}, 3),
    ):
        with pytest.raises(
            DataError, match=rf"{length} tokens long, no multiple of block_size=4.*AppendEOSBlockWrapper"
        ):
            objective.check_batch(batch)


def test_positions_restart_with_each_document():
    assert document_positions(PACKED).tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3, 0, 1]]


def test_the_trainer_takes_its_own_arguments(tmp_path):
    args = dllm.BD3LMConfig(output_dir=str(tmp_path), block_size=2, time_per="sequence", use_cpu=True)
    trainer = dllm.BD3LMTrainer(small("a2d"), args)
    assert trainer.objective == dllm.objective("bd3lm", block_size=2, time_per="sequence")
    with pytest.raises(OptionError, match="BD3LMConfig"):
        dllm.BD3LMTrainer(small("a2d"), dllm.MDLMConfig(output_dir=str(tmp_path), use_cpu=True))


def test_flex_attention_is_refused_where_it_has_no_gradients(tmp_path):
    args = dllm.BD3LMConfig(output_dir=str(tmp_path), block_size=2, use_cpu=True)
    trainer = dllm.BD3LMTrainer(small("a2d", "flex_attention"), args, train_dataset=[{"input_ids": [1, 2, 3, 4]}])
    with pytest.raises(OptionError, match=r"flex attention cannot be trained on the CPU; set model\.attn"):
        trainer.train()
