"""The memory-lean loss: the numbers and gradients of the plain one, and no tensor of its size."""

from __future__ import annotations

import copy
import sys
import threading
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertForMaskedLM, GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

import dllm_core as dllm
from dllm_core.conformance.toy import ExactModel, ToyAdapter, random_joint
from dllm_core.errors import OptionError
from dllm_core.models import ModelAdapter
from dllm_core.models import head as head_module
from dllm_core.models.attention import block_causal_pattern

VOCAB, LENGTH, ROWS, MASK = 50, 10, 3, 49


class AnyAdapter(ModelAdapter):
    supports_block_causal = True


class OwnLinear(nn.Linear):
    """A head that is not plainly `nn.Linear`, as quantised and adapted ones are."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So that a few rows take several pieces."""
    monkeypatch.setitem(head_module.PIECE_ELEMENTS, "cpu", 3 * VOCAB)
    monkeypatch.setattr(head_module, "FEWEST_COLUMNS", 4)


def llama(**fields) -> LlamaForCausalLM:
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {"vocab_size": VOCAB, "max_position_embeddings": 2 * LENGTH, "initializer_range": 0.3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**small | sizes | {"is_causal": False, "use_cache": False} | fields))


def bert() -> BertForMaskedLM:
    """Its head has a bias, its embedding is tied to the head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        return BertForMaskedLM(BertConfig(vocab_size=VOCAB, initializer_range=0.3, **small)).eval()


def toy() -> ExactModel:
    return ExactModel(random_joint(3, LENGTH // 2, seed=0))


def with_own_head() -> LlamaForCausalLM:
    model = llama()
    model.lm_head.__class__ = OwnLinear
    return model


MODELS = {
    "llama": llama,
    "tied": lambda: llama(tie_word_embeddings=True),
    "own head": with_own_head,
    "bert": bert,
    "float64": lambda: llama().double(),
    "toy": toy,
}


def denoiser_of(model: nn.Module, *, shifted: bool = False, special: int | None = None) -> dllm.Denoiser:
    is_toy = isinstance(model, ExactModel)
    adapter, mask = (ToyAdapter(), 3) if is_toy else (AnyAdapter(), MASK)
    return dllm.Denoiser(model, adapter, special_ids={"mask": mask}, logits_are_shifted=shifted)


def batch(model: nn.Module, share: float = 0.6) -> dict[str, Tensor]:
    """Noised ids, which are hidden, the clean ids, and ragged padding on the left."""
    vocabulary, length = (3, LENGTH // 2) if isinstance(model, ExactModel) else (MASK, LENGTH)
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(vocabulary, (ROWS, length), generator=draw)
    real = torch.arange(length) >= torch.tensor([[0], [2], [length - 2]])
    at = (torch.rand(ROWS, length, generator=draw) < share) & real
    return {"ids": clean.masked_fill(at, vocabulary), "mask": real, "at": at, "targets": clean}


def plain_nll(denoiser: dllm.Denoiser, given: dict[str, Tensor], **options) -> Tensor:
    """Cross-entropy of the logits of every position, as it is written everywhere, a shift undone by hand."""
    model = copy.copy(denoiser)
    model.logits_are_shifted = False
    logits = model.logits(given["ids"], given["mask"], **options)  # (B, L, V)
    if denoiser.logits_are_shifted:
        before = logits.roll(1, 1)
        begins = options.get("position_ids")
        if begins is None:
            begins = given["mask"].cumsum(1) - 1
        logits = torch.where((begins <= 0)[..., None], logits, before)
    high = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(high.transpose(1, 2), given["targets"], reduction="none")[given["at"]]


def lean_nll(denoiser: dllm.Denoiser, given: dict[str, Tensor], **options) -> Tensor:
    return denoiser.nll(given["ids"], given["mask"], at=given["at"], targets=given["targets"], **options)


def learned(denoiser: dllm.Denoiser, loss_of, given: dict[str, Tensor], **options) -> dict[str, Tensor]:
    """The losses of the rows, and all gradients of a sum that weighs each row differently."""
    denoiser.model.zero_grad()
    nll = loss_of(denoiser, given, **options)
    weights = torch.rand(nll.shape, generator=torch.Generator().manual_seed(1), dtype=nll.dtype)
    (nll * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in denoiser.model.named_parameters() if p.grad is not None}
    return {"nll": nll.detach()} | gradients


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        torch.testing.assert_close(got[name], value, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def assert_as_exact(got: dict[str, Tensor], want: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Of two results in 16 bits the one is no further from the exact one than the other, beyond luck."""
    assert got.keys() == want.keys() == exact.keys()
    for name, value in exact.items():
        errors = [(each[name].to(value.dtype) - value).norm() for each in (got, want)]
        assert errors[0] <= 1.3 * errors[1] + 1e-6 * value.norm(), name


def check_numbers(shifted: bool = False, model: str = "llama") -> None:
    built = MODELS[model]()
    denoiser, given = denoiser_of(built, shifted=shifted), batch(built)
    assert_equal(learned(denoiser, lean_nll, given), learned(denoiser, plain_nll, given))


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
    wrapped = get_peft_model(llama(), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "lm_head"]))
    made = denoiser_of(wrapped)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    assert type(made.bare_model.get_output_embeddings()) is not nn.Linear
    given = batch(made.bare_model)
    got = learned(made, lean_nll, given)
    assert any("lm_head.lora_A" in name for name in got)
    assert_equal(got, learned(made, plain_nll, given))


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


# ------------------------------------------------------------------------------------------------ threads and errors


def test_threads_do_not_meet_in_the_head():
    """Two losses and a call for logits at once on one model, all inside it when the first reaches the head."""
    model = llama()
    denoiser = denoiser_of(model)
    batches = [batch(model, share) for share in (0.3, 0.9)]
    calls = [lambda given=given: lean_nll(denoiser, given) for given in batches]
    calls.append(lambda: denoiser.logits(batches[0]["ids"], batches[0]["mask"]))
    calls.append(lambda: denoiser.logits(batches[1]["ids"], batches[1]["mask"], at=batches[1]["at"]))
    with torch.no_grad():
        want = [call() for call in calls]
    together, got = threading.Barrier(len(calls), timeout=60), {}

    def wait(*_: object) -> None:
        together.wait()

    model.base_model.register_forward_hook(wait)

    @torch.no_grad()
    def run(number: int) -> None:
        got[number] = calls[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, value in enumerate(want):
        torch.testing.assert_close(got[number], value)


@pytest.mark.parametrize("place", ["body", "head"])
def test_an_error_leaves_the_model_as_it_was(place):
    model = llama()
    denoiser, given = denoiser_of(model), batch(model)
    want = denoiser.logits(given["ids"])
    module = model.base_model if place == "body" else model.lm_head

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = module.register_forward_hook(fail)
    for call in (lambda: lean_nll(denoiser, given), lambda: denoiser.logits(given["ids"], at=given["at"])):
        with pytest.raises(RuntimeError, match="out of memory"):
            call()
    handle.remove()
    assert not model.lm_head._forward_pre_hooks
    assert not model.lm_head._forward_hooks
    assert torch.equal(denoiser.logits(given["ids"]), want)


# ------------------------------------------------------------------------------------------------ memory


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made while it is on, in the backward pass too."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        output = function(*arguments, **options or {})
        made = [each.numel() for each in tree_leaves(output) if isinstance(each, Tensor)]
        self.elements = max([self.elements, *made])
        return output


def largest_of(loss_of, model: nn.Module) -> tuple[int, int]:
    """The most elements of a tensor, and N x V."""
    denoiser, given = denoiser_of(model), batch(model)
    with Largest() as seen:
        loss_of(denoiser, given).sum().backward()
    return seen.elements, int(given["at"].sum()) * model.config.vocab_size


def check_memory(wide: int = 4000) -> None:
    """With a vocabulary beside which everything else is small; a piece holds three rows of it."""
    head_module.PIECE_ELEMENTS["cpu"] = wide
    for own in (False, True):
        model = llama(vocab_size=wide, hidden_size=4)
        if own:
            model.lm_head.__class__ = OwnLinear
        elements, whole = largest_of(lean_nll, model)
        assert whole >= 12 * wide
        assert elements <= 4 * wide  # the head itself; a piece has no more


def test_no_tensor_is_as_large_as_the_logits():
    check_memory()
    model = llama(vocab_size=4000, hidden_size=4)
    elements, whole = largest_of(plain_nll, model)  # and the measure does see it
    assert elements == ROWS * LENGTH * 4000
    rows = denoiser_of(model)
    assert largest_of(lambda _, given: rows.logits(given["ids"], at=given["at"]), model)[0] == whole


# ------------------------------------------------------------------------------------------------ kernels


@pytest.fixture
def kernel(monkeypatch) -> list[dict]:
    """A package cut-cross-entropy that writes down how it is called, and taken for one that runs on this device."""
    calls = []

    def linear_cross_entropy(e, c, targets, **options):
        calls.append(options | {"dtype": e.dtype, "rows": len(e)})
        return F.cross_entropy(F.linear(e, c, options["bias"]).float(), targets, reduction=options["reduction"])

    module = ModuleType("cut_cross_entropy")
    module.linear_cross_entropy = linear_cross_entropy
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", module)
    monkeypatch.setattr(head_module, "KERNEL_DEVICES", ("cpu",))
    return calls


def test_the_kernel_is_used_where_it_is_installed_and_runs(kernel, monkeypatch):
    model = llama().to(torch.bfloat16)
    denoiser, given = denoiser_of(model), batch(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "KERNEL_DEVICES", ("cuda",))
        want = learned(denoiser, lean_nll, given)
    assert kernel == []
    assert_equal(learned(denoiser, lean_nll, given), want, tolerance=0.1)
    rows = int(given["at"].sum())
    asked = {"reduction": "none", "impl": "cce_exact", "bias": None, "dtype": torch.bfloat16, "rows": rows}
    assert kernel == [asked]
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", None)  # what an import finds where it is not installed
    assert_equal(learned(denoiser, lean_nll, given), want)
    assert len(kernel) == 1


def test_the_kernel_is_left_where_it_does_not_fit(kernel):
    """It computes in 16 bits, and knows plain linear heads only."""
    check_numbers()
    check_numbers(model="own head")
    assert kernel == []
    model = llama()
    denoiser, given = denoiser_of(model), batch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lean_nll(denoiser, given).sum().backward()
    assert [call["dtype"] for call in kernel] == [torch.bfloat16]


# ------------------------------------------------------------------------------------------------ mutants


def off_by_one(function):
    def places(targets, start, stop):
        inside, place = function(targets, start, stop)
        return inside, (place - 1).clamp(min=0)

    return places


MUTANTS = {
    "the target is another token": ("_places", off_by_one, check_numbers),
    "the last slice is left out": ("_slices", lambda f: lambda *a: list(f(*a))[:-1], check_numbers),
    "slices overlap": ("_slices", lambda f: lambda *a: [(max(s - 1, 0), e) for s, e in f(*a)], check_numbers),
    "one slice holds it all": ("_slices", lambda f: lambda rows, weight: [(0, len(weight))], check_memory),
    "chunks of rows hold it all": ("_piece_elements", lambda f: lambda rows: 10**12, check_memory),
    "all heads count as plain": ("_is_plain", lambda f: lambda head: True, test_lora_on_the_head_and_below),
    "the shift is forgotten": (
        "_position_before",
        lambda f: lambda ids, _: torch.arange(ids.shape[1]).expand_as(ids),
        lambda: check_numbers(shifted=True),
    ),
    "the loss goes around the head's hooks": (
        "score",
        lambda f: lambda head, rows, targets: f(head, rows, targets).detach().requires_grad_(),
        check_numbers,
    ),
}


@pytest.mark.parametrize(("name", "mutate", "check"), MUTANTS.values(), ids=MUTANTS)
def test_mutants_are_caught(name, mutate, check, monkeypatch):
    check()
    monkeypatch.setattr(head_module, name, mutate(getattr(head_module, name)))
    with pytest.raises(AssertionError):
        check()
