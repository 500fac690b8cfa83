"""The memory-lean loss: threads, errors, the memory it takes, kernels, and mutants that must be caught."""

from __future__ import annotations

import sys
import threading
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dllm_core.models import head as head_module
from tests.core.head_models import (
    LENGTH,
    ROWS,
    VOCAB,
    OwnLinear,
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
    "all heads count as plain": ("_is_plain", lambda f: lambda head: True, check_lora_heads),
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
