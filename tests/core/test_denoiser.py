"""`Denoiser`: rows, shift, padding and special tokens, on an exact toy and a Hugging Face model with real attention."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import dllm_core as dllm
from dllm_core.conformance.toy import ExactModel, ToyAdapter, random_joint, toy_denoiser
from dllm_core.errors import ModelLoadError, OptionError
from dllm_core.models import ModelAdapter, as_model_mask, block_causal_pattern, padding_pattern

VOCAB, LENGTH, MASK = 12, 8, 11


class EncoderAdapter(ModelAdapter):
    """A family whose model takes patterns, with absolute positions, so that wrong positions show."""

    model_types = ("bert",)
    supports_block_causal = True


def encoder(implementation: str = "sdpa", seed: int = 0) -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.5,
        attn_implementation=implementation,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForMaskedLM(config).eval()


def toy() -> ExactModel:
    return ExactModel(random_joint(3, LENGTH // 2, seed=0))


def denoiser(model: nn.Module, shifted: bool = False) -> dllm.Denoiser:
    is_toy = isinstance(getattr(model, "module", model), ExactModel)
    adapter, mask = (ToyAdapter(), 3) if is_toy else (EncoderAdapter(), MASK)
    return dllm.Denoiser(model, adapter, special_ids={"mask": mask}, logits_are_shifted=shifted)


def batch(width: int, vocab: int, side: str | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Ids (3, width) and which are real (3, width): rows of full, middling and least length."""
    ids = torch.randint(0, vocab, (3, width), generator=torch.Generator().manual_seed(3))
    if side is None:
        return ids, None
    lengths = torch.tensor([[width], [width // 2 + 1], [1]])
    position = torch.arange(width).expand(3, -1)
    return ids, (position < lengths if side == "right" else position >= width - lengths)


BUILDERS = {"toy": (toy, LENGTH // 2, 4), "encoder": (encoder, LENGTH, VOCAB)}


@pytest.fixture(params=BUILDERS)
def case(request):
    """(model, width, vocabulary)"""
    build, width, vocab = BUILDERS[request.param]
    return build(), width, vocab


each_layout = pytest.mark.parametrize("side", [None, "left", "right"])
each_shift = pytest.mark.parametrize("shifted", [False, True])


@torch.no_grad()
@each_layout
@each_shift
def test_rows_asked_for_are_those_of_the_whole(case, shifted, side):
    model, width, vocab = case
    ids, mask = batch(width, vocab, side)
    whole = denoiser(model, shifted).logits(ids, mask)
    assert whole.shape == (3, width, vocab)
    at = torch.tensor([[width - 1, 0], [1, 1], [0, width - 1]])
    rows = denoiser(model, shifted).logits(ids, mask, at=at)
    torch.testing.assert_close(rows, whole.gather(1, at[..., None].expand(-1, -1, vocab)))
    chosen = torch.rand(3, width, generator=torch.Generator().manual_seed(1)) < 0.5
    torch.testing.assert_close(denoiser(model, shifted).logits(ids, mask, at=chosen), whole[chosen])
    nothing = torch.zeros(3, width, dtype=torch.bool)
    assert denoiser(model, shifted).logits(ids, mask, at=nothing).shape == (0, vocab)


@torch.no_grad()
@each_layout
def test_a_shift_takes_the_row_before_and_a_rows_first_token_its_own(case, side):
    model, width, vocab = case
    ids, mask = batch(width, vocab, side)
    raw = denoiser(model).logits(ids, mask)
    got = denoiser(model, shifted=True).logits(ids, mask)
    real = torch.ones(3, width, dtype=torch.bool) if mask is None else mask
    for row in range(3):
        places = real[row].nonzero().flatten().tolist()
        torch.testing.assert_close(got[row, places[0]], raw[row, places[0]])
        torch.testing.assert_close(got[row, places[1:]], raw[row, places[:-1]])


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@each_shift
def test_a_padded_row_gets_what_it_gets_alone(case, shifted, side):
    """Padding on either side is neither seen nor counted: positions run over the real tokens."""
    model, width, vocab = case
    ids, mask = batch(width, vocab, side)
    logits = denoiser(model, shifted).logits(ids, mask)
    for row in range(3):
        alone = denoiser(model, shifted).logits(ids[row][mask[row]][None])
        torch.testing.assert_close(logits[row][mask[row]], alone[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_positions_count_the_real_tokens_unless_they_are_given():
    model = encoder()
    ids, mask = batch(LENGTH, VOCAB, "left")
    seen = []
    model.bert.embeddings.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    denoiser(model).logits(ids, mask)
    assert seen[0].tolist() == [list(range(8)), [0, 0, 0, 0, 1, 2, 3, 4], [0] * 8]
    given = torch.arange(LENGTH).flip(0).expand(3, -1)
    turned = denoiser(model).logits(ids, mask, position_ids=given)
    assert torch.equal(seen[1], given)
    assert not torch.allclose(turned, denoiser(model).logits(ids, mask), atol=1e-3)
    denoiser(model).logits(ids)
    assert seen[3] is None  # no padding: the model counts by itself


@each_shift
@pytest.mark.parametrize("form", ["positions", "bool"])
def test_gradients_flow_as_through_the_whole(case, shifted, form):
    model, width, vocab = case
    ids, mask = batch(width, vocab, "right")
    chosen = mask & (torch.arange(width) % 2 == 1)  # one position at least in the first row, none in the last
    at = chosen if form == "bool" else torch.tensor([[1, 3]] * 3)

    def gradients(logits: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        logits.log_softmax(-1)[..., 0].sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole = denoiser(model, shifted).logits(ids, mask)
    index = at[..., None].expand(-1, -1, vocab) if form == "positions" else None
    want = gradients(whole[chosen] if index is None else whole.gather(1, index))
    got = gradients(denoiser(model, shifted).logits(ids, mask, at=at))
    assert len(got) == len(want) > 0
    assert max(float(g.abs().max()) for g in got) > 0
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


class Wrapper(nn.Module):
    """What DDP and FSDP do: hold the model under ``module``, and want to see every forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


@torch.no_grad()
@each_shift
def test_a_wrapped_model_is_called_once_and_gives_the_same(case, shifted):
    model, width, vocab = case
    ids, mask = batch(width, vocab, "right")
    wrapper = Wrapper(model)
    wrapped = denoiser(wrapper, shifted)
    for at in (None, mask, torch.zeros(3, 1, dtype=torch.int64)):
        wrapper.calls = 0
        torch.testing.assert_close(wrapped.logits(ids, mask, at=at), denoiser(model, shifted).logits(ids, mask, at=at))
        assert wrapper.calls == 1
    assert wrapped.bare_model is model
    assert wrapped.vocab_size == vocab


@torch.no_grad()
def test_the_head_sees_only_the_rows_asked_for_and_no_hook_stays_behind():
    model, shapes = encoder(), []
    ids, mask = batch(LENGTH, VOCAB, "right")
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, out: shapes.append(tuple(out.shape)))
    for shifted in (False, True):
        one = denoiser(model, shifted)
        one.logits(ids, mask, at=torch.tensor([[2], [1], [0]]))
        one.logits(ids, mask, at=mask)
        one.logits(ids, mask)
    assert shapes == [(3, 1, VOCAB), (1, int(mask.sum()), VOCAB), (3, LENGTH, VOCAB)] * 2
    assert not model.get_output_embeddings()._forward_pre_hooks
    too_long = torch.zeros(1, LENGTH + 1, dtype=torch.int64)
    with pytest.raises((IndexError, RuntimeError)):
        denoiser(model).logits(too_long, at=torch.zeros(1, 1, dtype=torch.int64))
    assert not model.get_output_embeddings()._forward_pre_hooks


# -- attention patterns -----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_pattern_hides_what_it_says_under_every_implementation(implementation):
    one = denoiser(encoder(implementation))
    ids, _ = batch(LENGTH, VOCAB, None)
    pattern = block_causal_pattern(LENGTH, 3)
    logits = one.logits(ids, attention=pattern)
    torch.testing.assert_close(logits, denoiser(encoder("sdpa")).logits(ids, attention=pattern), atol=1e-5, rtol=1e-4)
    changed = ids.clone()
    changed[:, 6:] = (ids[:, 6:] + 1) % VOCAB
    other = one.logits(changed, attention=pattern)
    torch.testing.assert_close(other[:, :6], logits[:, :6])  # the last block is out of their sight
    assert not torch.allclose(one.logits(changed)[:, :6], one.logits(ids)[:, :6], atol=1e-2)
    assert not torch.allclose(logits, one.logits(ids), atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_as_a_pattern_is_padding_as_a_mask(implementation, side):
    one = denoiser(encoder(implementation))
    ids, mask = batch(LENGTH, VOCAB, side)
    by_pattern = one.logits(ids, mask, attention=padding_pattern(mask))
    torch.testing.assert_close(by_pattern[mask], one.logits(ids, mask)[mask], atol=1e-5, rtol=1e-4)


def test_block_causal_patterns_by_hand():
    assert block_causal_pattern(5, 2)[0, 0].int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]
    with pytest.raises(OptionError, match="block_size must be at least 1, got 0"):
        block_causal_pattern(5, 0)


def test_a_pattern_in_the_form_of_each_implementation():
    pattern = block_causal_pattern(4, 2)
    assert as_model_mask(pattern, "sdpa", torch.float32) is pattern
    bias = as_model_mask(pattern, "eager", torch.bfloat16)
    assert bias.dtype == torch.bfloat16
    assert torch.equal(bias == 0, pattern)
    assert bool(bias.isfinite().all())
    for implementation in ("flash_attention_2", "flex_attention"):
        with pytest.raises(OptionError, match=f"'sdpa' or 'eager', this model runs '{implementation}'"):
            as_model_mask(pattern, implementation, torch.float32)


class ModestAdapter(ToyAdapter):
    supports_block_causal = False


def test_a_family_that_takes_no_pattern_or_cache_says_so():
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(OptionError, match="ModestAdapter takes no attention pattern"):
        dllm.Denoiser(toy(), ModestAdapter(), special_ids={"mask": 3}).logits(ids, attention=block_causal_pattern(2, 1))
    with pytest.raises(OptionError, match="EncoderAdapter declares no KV cache"):
        denoiser(encoder()).logits(ids, cache=object())


# -- special tokens ---------------------------------------------------------------------------------------------------


def tokenizer_with(**special: str) -> PreTrainedTokenizerFast:
    words = ["a", "b", "<eos>", "<pad>", "<bos>", "<turn>", "[M]", *special.values()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="a")), **special)


class TurnAdapter(EncoderAdapter):
    mask_token = "[M]"
    eot_tokens = ("<turn>", "<unknown>")


def test_special_ids_come_from_the_tokenizer_and_given_ones_win():
    tokenizer = tokenizer_with(mask_token="[M]", eos_token="<eos>", pad_token="<pad>", bos_token="<bos>")
    one = dllm.Denoiser(encoder(), TurnAdapter(), tokenizer)
    assert (one.mask_token_id, one.eos_token_id, one.pad_token_id, one.bos_token_id) == (6, 2, 3, 4)
    assert one.eot_token_ids == (5,)
    assert one.end_token_ids == (2, 5)
    other = dllm.Denoiser(encoder(), TurnAdapter(), tokenizer, special_ids={"mask": 9, "eos": 8, "eot": 8})
    assert (other.mask_token_id, other.eos_token_id, other.pad_token_id) == (9, 8, 3)
    assert other.end_token_ids == (8,)


def test_filler_is_padding_or_else_the_end_of_sequence_or_else_the_mask_token():
    for ids, filler in (({"pad": 1, "eos": 2}, 1), ({"eos": 2}, 2), ({}, MASK)):
        one = dllm.Denoiser(encoder(), EncoderAdapter(), special_ids={"mask": MASK} | ids)
        assert one.pad_token_id == filler
        assert one.eos_token_id == ids.get("eos")
        assert one.bos_token_id is None
        assert one.eot_token_ids == ()


def test_what_a_denoiser_tells_of_its_model():
    one = denoiser(encoder().to(torch.bfloat16))
    assert (one.vocab_size, one.context_length) == (VOCAB, LENGTH)
    assert (one.device, one.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert not one.logits_are_shifted


@pytest.mark.parametrize(
    ("special_ids", "error", "words"),
    [
        ({}, ModelLoadError, ["no mask token", "'[M]'", "special_ids={'mask': ID}"]),
        ({"eos": 2}, ModelLoadError, ["no mask token"]),
        ({"mask": 12}, ModelLoadError, ["mask=12", "embedding of 12 rows", "0 to 11"]),
        ({"mask": -1}, ModelLoadError, ["mask=-1"]),
        ({"mask": 1, "eos": 99}, ModelLoadError, ["eos=99"]),
        ({"mask": 1, "end": 2}, OptionError, ["'end'", "mask, eos, pad, bos, eot"]),
    ],
)
def test_bad_special_ids(special_ids, error, words):
    with pytest.raises(error) as caught:
        dllm.Denoiser(encoder(), TurnAdapter(), special_ids=special_ids)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_a_tokenizer_without_a_mask_token_is_not_enough():
    with pytest.raises(ModelLoadError, match="the tokenizer has none"):
        dllm.Denoiser(encoder(), EncoderAdapter(), tokenizer_with(eos_token="<eos>"))


def test_a_model_without_a_vocabulary_head_is_refused(monkeypatch):
    denoiser = toy_denoiser(random_joint(3, 2, seed=0))
    monkeypatch.setattr(denoiser.model, "get_output_embeddings", lambda: None)
    with pytest.raises(ModelLoadError, match=r"ExactModel scores no tokens.*language-modelling head"):
        denoiser.logits(torch.tensor([[3, 3]]), at=torch.tensor([[0]]))
