"""Small models and losses that the tests of the vocabulary head share."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

import dllm_core as dllm
from dllm_core.conformance.toy import ExactModel, ToyAdapter, random_joint
from dllm_core.models import ModelAdapter

VOCAB, LENGTH, ROWS, MASK = 50, 10, 3, 49


class AnyAdapter(ModelAdapter):
    supports_block_causal = True


class OwnLinear(nn.Linear):
    """A head that is not plainly `nn.Linear`, as quantised and adapted ones are."""


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
    """Of two results in 16 bits the one is no further from the exact one than the other, beyond luck.

    A single matrix may be luckier on one processor than on another (1.37 was seen), all of them together hardly.
    """
    assert got.keys() == want.keys() == exact.keys()
    ratios = []
    for name, value in exact.items():
        errors = [(each[name].to(value.dtype) - value).norm() for each in (got, want)]
        assert errors[0] <= 1.5 * errors[1] + 1e-6 * value.norm(), name
        ratios.append((errors[0] + 1e-6 * value.norm()) / (errors[1] + 1e-6 * value.norm()))
    assert torch.stack(ratios).log().mean().exp() <= 1.1  # the geometric mean: no matrix counts more than another


def check_numbers(shifted: bool = False, model: str = "llama") -> None:
    built = MODELS[model]()
    denoiser, given = denoiser_of(built, shifted=shifted), batch(built)
    assert_equal(learned(denoiser, lean_nll, given), learned(denoiser, plain_nll, given))


def check_lora_heads():
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
