"""The memory-lean loss: the numbers and gradients of the plain one, on every kind of head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig

import dllm_core as dllm
from dllm_core.errors import OptionError
from dllm_core.models import ModelAdapter
from dllm_core.models import head as head_module
from dllm_core.models.attention import block_causal_pattern
from tests.core.head_models import (
    LENGTH,
    MASK,
    MODELS,
    ROWS,
    VOCAB,
    OwnLinear,
    assert_as_exact,
    assert_equal,
    batch,
    check_lora_heads,
    check_numbers,
    denoiser_of,
    lean_nll,
    learned,
    llama,
    plain_nll,
)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So that a few rows take several pieces."""
    monkeypatch.setitem(head_module.PIECE_ELEMENTS, "cpu", 3 * VOCAB)
    monkeypatch.setattr(head_module, "FEWEST_COLUMNS", 4)


# ------------------------------------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shifted", [False, True])
def test_losses_and_gradients_are_those_of_the_plain_loss(model, shifted):
    check_numbers(shifted, model)


@settings(max_examples=120, deadline=None)
@given(
    rows=st.integers(1, 9),
    hidden=st.integers(1, 6),
    vocabulary=st.integers(1, 40),
    piece=st.integers(1, 200),
    fewest=st.integers(1, 50),
    bias=st.booleans(),
    plain=st.booleans(),
    frozen=st.sampled_from(["nothing", "rows", "weight"]),
    seed=st.integers(0, 99),
)
def test_any_shape_in_pieces_of_any_size(rows, hidden, vocabulary, piece, fewest, bias, plain, frozen, seed):
    """Against the head and cross-entropy of torch, in float64, with large logits among them."""
    torch.manual_seed(seed)
    head = (nn.Linear if plain else OwnLinear)(hidden, vocabulary, bias=bias, dtype=torch.float64)
    head.weight.data *= 30
    head.weight.requires_grad_(frozen != "weight")
    states = torch.randn(rows, hidden, dtype=torch.float64, requires_grad=frozen != "rows")
    targets, weights = torch.randint(vocabulary, (rows,)), torch.randn(rows, dtype=torch.float64)
    leaves = [each for each in (states, *head.parameters()) if each.requires_grad]
    want = F.cross_entropy(head(states), targets, reduction="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(head_module.PIECE_ELEMENTS, "cpu", piece)
        patch.setattr(head_module, "FEWEST_COLUMNS", fewest)
        got = head_module.score(head, states, targets)
        torch.testing.assert_close(got, want)
        if leaves:
            slopes = torch.autograd.grad((got * weights).sum(), leaves)
            for slope, other in zip(slopes, torch.autograd.grad((want * weights).sum(), leaves), strict=True):
                torch.testing.assert_close(slope, other)


def test_gradients_are_those_of_finite_differences():
    head = nn.Linear(3, 7, dtype=torch.float64)
    states = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3])

    def score(rows, weight, bias):
        return head_module._LinearNLL.apply(rows, weight, bias, targets)

    assert torch.autograd.gradcheck(score, (states, head.weight, head.bias))


def test_a_slice_without_a_possible_token_counts_for_nothing():
    head = nn.Linear(2, VOCAB)
    head.bias.data[:10] = -torch.inf
    states, targets = torch.randn(3, 2, requires_grad=True), torch.tensor([12, 30, 49])
    got = head_module.score(head, states, targets)
    torch.testing.assert_close(got, F.cross_entropy(head(states), targets, reduction="none"))
    got.sum().backward()
    assert states.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


def test_patterns_and_positions_reach_the_model():
    model = llama()
    denoiser, given = denoiser_of(model, shifted=True), batch(model) | {"mask": None}
    options = {
        "attention": block_causal_pattern(LENGTH, 2),
        "position_ids": torch.arange(LENGTH).remainder(5).expand(ROWS, -1),
    }
    assert_equal(learned(denoiser, lean_nll, given, **options), learned(denoiser, plain_nll, given, **options))
    refusing = dllm.Denoiser(model, ModelAdapter(), special_ids={"mask": MASK}, logits_are_shifted=False)
    with pytest.raises(OptionError, match="takes no attention pattern"):
        lean_nll(refusing, given, attention=options["attention"])


@pytest.mark.parametrize("model", MODELS)
def test_no_hidden_token_gives_a_zero_that_reaches_the_weights(model):
    """DDP waits for the gradient of every weight."""
    built = MODELS[model]()
    got = learned(denoiser_of(built), lean_nll, batch(built, share=0.0))
    assert got.pop("nll").shape == (0,)
    trained = {name for name, p in built.named_parameters() if "embedding" not in name or model != "toy"}
    assert set(got) >= trained - {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert all(not gradient.any() for gradient in got.values())


def test_without_gradients_nothing_is_kept():
    model = llama()
    denoiser, given = denoiser_of(model), batch(model)
    want = plain_nll(denoiser, given)
    with torch.no_grad():
        torch.testing.assert_close(lean_nll(denoiser, given), want)
    model.requires_grad_(False)
    assert not lean_nll(denoiser, given).requires_grad


# ------------------------------------------------------------------------------------------------ around the model


def test_lora_on_the_head_and_below():
    check_lora_heads()


@pytest.mark.parametrize("model", ["llama", "own head", "tied"])
def test_autocast(model):
    built = MODELS[model]()
    denoiser, given = denoiser_of(built), batch(built)

    def under(loss_of):
        def run(*arguments):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return loss_of(*arguments)

        return learned(denoiser, run, given)

    got, want = under(lean_nll), under(plain_nll)
    assert got["nll"].dtype == torch.float32
    torch.testing.assert_close(got["nll"], want["nll"], atol=1e-4, rtol=1e-4)
    exact = learned(denoiser, plain_nll, given)
    assert_as_exact(got, want, exact)
    assert not torch.equal(got["nll"], exact["nll"])  # it did run in bfloat16


def test_bfloat16_weights_learn_as_closely_as_from_the_plain_loss():
    """The gradient of the head is one product for each of its rows: no sum over chunks in 8 bits."""
    exact_model = llama().to(torch.bfloat16).float()
    given = batch(exact_model)
    exact = learned(denoiser_of(exact_model), plain_nll, given)
    denoiser = denoiser_of(llama().to(torch.bfloat16))
    lean, plain = (learned(denoiser, each, given) for each in (lean_nll, plain_nll))
    assert_as_exact(lean, plain, exact)
    torch.testing.assert_close(lean["nll"], plain["nll"])  # from the same rounded logits, in float32


def test_activation_checkpointing():
    model = llama().train()
    denoiser, given = denoiser_of(model), batch(model)
    want = learned(denoiser, plain_nll, given)
    model.activation_checkpointing_enable()
    assert_equal(learned(denoiser, lean_nll, given), want)


def test_a_compiled_backbone():
    model = llama()
    denoiser, given = denoiser_of(model), batch(model)
    want = learned(denoiser, plain_nll, given)
    model.base_model.compile(backend="aot_eager")
    assert_equal(learned(denoiser, lean_nll, given), want)


class Wrapped(nn.Module):
    """As DDP does: the model is `module`, and its forward must be called through this one, once."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *arguments, **options):
        self.calls += 1
        return self.module(*arguments, **options)


def test_one_forward_of_the_wrapped_model():
    inner = llama()
    wrapped = Wrapped(inner)
    given = batch(inner)
    got = lean_nll(denoiser_of(wrapped), given)
    assert wrapped.calls == 1
    torch.testing.assert_close(got, plain_nll(denoiser_of(inner), given))


def test_hooks_around_the_head_see_what_the_loss_is_made_of():
    """Sharding gathers weights before the head's call, and for the backward pass when its output gets a gradient."""
    model = llama()
    denoiser, given, seen = denoiser_of(model), batch(model), []
    model.lm_head.register_forward_pre_hook(lambda *_: seen.append("gather"), prepend=True)
    model.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(output))
    nll = lean_nll(denoiser, given)
    assert seen[0] == "gather"
    assert torch.equal(seen[1][0, :, 0], nll)
    seen[1].register_hook(lambda _: seen.append("gather again"))
    model.lm_head.weight.register_hook(lambda _: seen.append("gradient of the weight"))
    nll.sum().backward()
    # The hook came after the slice that the loss was made of, on the same output.
    assert seen[2:] == ["gather again", "gradient of the weight"]


# ------------------------------------------------------------------------------------------------ other families


def granite() -> GraniteForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        return GraniteForCausalLM(GraniteConfig(vocab_size=VOCAB, logits_scaling=4.0, initializer_range=0.3, **small))


def test_a_family_that_scales_its_logits_keeps_its_loss():
    model = granite()
    denoiser, given = denoiser_of(model), batch(model)
    assert not denoiser.adapter.logits_end_at_head(model.config)
    assert_equal(learned(denoiser, lean_nll, given), learned(denoiser, plain_nll, given))


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({}, True),
        ({"final_logit_softcapping": None, "logit_scale": 1.0, "scale_logits": False}, True),
        ({"final_logit_softcapping": 30.0}, False),
        ({"final_logit_softcapping": 1.0}, False),
        ({"scale_logits": True}, False),
        ({"logit_scale": 0.0625}, False),
        ({"logits_scaling": 8.0}, False),
    ],
)
def test_what_a_configuration_says_of_its_logits(fields, ends):
    config = LlamaConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    assert ModelAdapter().logits_end_at_head(config) is ends
