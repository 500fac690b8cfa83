"""Edit heads on every family: what they read, what they cost, what reaches them.

Shapes: B rows, L length, V vocabulary, H hidden.
"""

from __future__ import annotations

import pytest
import torch
from dllm_editflow.adapters import EditFlowLLaDAAdapter
from dllm_editflow.converting import with_heads
from dllm_editflow.kinds import INSERT
from dllm_editflow.models.families import FAMILIES
from dllm_editflow.models.heads import one_later
from dllm_editflow.models.options import CONVERTED, HeadOptions
from dllm_editflow.models.rates import PRIOR, prior_scores, rates_from
from dllm_editflow.reading import read_edits
from dllm_llada.conformance import TestAdapter as LLaDASuite
from hypothesis import given
from hypothesis import strategies as st

from dllm_core.conformance.adapter_suite import random_ids
from dllm_core.errors import ModelLoadError, OptionError
from dllm_core.models.denoiser import Denoiser

TIMES = torch.tensor([0.0, 0.3, 1.0])


def heads(states):
    """Everything that the states say."""
    return {
        "rates": states.rates,
        "substitute": states.substitute(states.substitute_hidden),
        "insert": states.insert(states.insert_hidden),
    }


def ragged_batch(denoiser):
    ids = random_ids(denoiser, 3, 12)
    mask = torch.arange(12) < torch.tensor([[12], [7], [4]])
    return ids, mask


def stir(model, *, std=0.1):
    """Move every weight, so that none is left at zero."""
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(std * torch.randn(weight.shape, generator=chance))


@torch.no_grad()
def test_before_training_the_model_is_its_source(source, converted):
    """Its logits, the scores of both heads, and what is said of it for any family: a right shift is undone."""
    own, _ = source
    ids, mask = ragged_batch(own)
    want = own.logits(ids, mask)
    torch.testing.assert_close(converted.logits(ids, mask), want, atol=1e-5, rtol=1e-5)
    got = read_edits(converted, ids, mask, time=TIMES, reader=heads)
    torch.testing.assert_close(got["substitute"][mask], want[mask], atol=1e-5, rtol=1e-5)
    rows = own.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(got["insert"][mask], rows[mask], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_before_training_rates_are_few_edits_and_the_time_says_nothing(converted):
    ids, mask = ragged_batch(converted)
    said = [read_edits(converted, ids, mask, time=time, reader=heads) for time in (None, TIMES, 1 - TIMES)]
    torch.testing.assert_close(said[0]["rates"], torch.tensor(PRIOR).expand(3, 12, 3))
    for other in said[1:]:
        for name, value in other.items():
            assert torch.equal(value, said[0][name])


@torch.no_grad()
def test_a_trained_time_is_heard_row_by_row(suite):
    denoiser = suite().denoiser()  # no weight is zero
    ids = random_ids(denoiser, 3, 12)
    together = read_edits(denoiser, ids, None, time=TIMES, reader=heads)
    unsaid = read_edits(denoiser, ids, None, time=None, reader=heads)
    for row, time in enumerate(TIMES):
        alone = read_edits(denoiser, ids[row : row + 1], None, time=time[None], reader=heads)
        for name, value in alone.items():
            torch.testing.assert_close(together[name][row], value[0], atol=1e-5, rtol=1e-5)
            assert (value[0] - unsaid[name][row]).abs().max() > 1e-3


@torch.no_grad()
def test_padding_is_not_heard(suite):
    denoiser = suite().denoiser()
    ids, mask = ragged_batch(denoiser)
    batch = read_edits(denoiser, ids, mask, time=TIMES, reader=heads)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = read_edits(denoiser, ids[row : row + 1, :length], None, time=TIMES[row : row + 1], reader=heads)
        for name, value in alone.items():
            torch.testing.assert_close(batch[name][row, :length], value[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_shift_moves_what_is_said_of_a_token_and_not_what_follows_it(suite):
    """Substitution and deletion of token i come from row i - 1, an insertion behind it from row i."""
    model = suite().model()
    ids = random_ids(suite().denoiser(model), 2, 8)
    plain, shifted = (
        read_edits(suite().denoiser(model, logits_are_shifted=shift), ids, None, time=None, reader=heads)
        for shift in (False, True)
    )
    assert torch.equal(shifted["rates"][:, 1:, :INSERT], plain["rates"][:, :-1, :INSERT])
    assert torch.equal(shifted["rates"][:, 0], plain["rates"][:, 0])
    assert torch.equal(shifted["rates"][..., INSERT], plain["rates"][..., INSERT])
    torch.testing.assert_close(shifted["substitute"][:, 1:], plain["substitute"][:, :-1])
    torch.testing.assert_close(shifted["insert"], plain["insert"])


@torch.no_grad()
def test_another_token_moves_the_rates_of_its_own_row(suite):
    """All three, whatever the family's shift."""
    denoiser = suite().denoiser()
    ids = random_ids(denoiser, 1, 10)
    other = ids.clone()
    other[0, 5] = (ids[0, 5] + 1) % 20
    before, after = (read_edits(denoiser, each, None, time=None, reader=lambda s: s.rates) for each in (ids, other))
    assert ((before - after)[0, 5].abs() > 1e-5).all()


def test_one_pass_and_no_row_through_the_vocabulary_head(suite):
    denoiser = suite().denoiser()
    ids, mask = ragged_batch(denoiser)
    rows, passes = [], []
    denoiser.model.get_output_embeddings().register_forward_hook(lambda *call: rows.append(call[2].numel()))
    denoiser.model.register_forward_pre_hook(lambda *call: passes.append(1))
    read_edits(denoiser, ids, mask, time=TIMES, reader=lambda states: states.rates)
    assert (rows, passes) == ([0], [1])
    assert denoiser.logits(ids, mask).shape[:2] == ids.shape  # the hooks are gone


@pytest.mark.parametrize("options", [CONVERTED, HeadOptions()], ids=["converted", "published"])
def test_every_weight_has_a_gradient_also_without_an_edit_of_its_kind(suite, options):
    """Zeros where nothing was asked for: other processes of the same step may have asked."""
    row = next(row for row in FAMILIES if row.name == suite.family)
    adapter = suite().adapter()
    model = adapter.build_model(with_heads(row, suite.own().tiny_config(), options))
    stir(model)
    denoiser = Denoiser(model.train(), adapter, suite().prepared_tokenizer())
    ids, mask = ragged_batch(denoiser)
    read_edits(denoiser, ids, mask, time=TIMES, reader=lambda states: states.rates[mask].sum()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
    moved = {name.partition(".")[0] for name, weight in model.named_parameters() if weight.grad.count_nonzero()}
    assert "rate_heads" in moved
    assert ("time_embedding" in moved) == options.edit_time_embedding
    assert not {"sub_logits", "ins_logits"} & moved


def test_losses_on_both_heads_reach_them(converted):
    ids, mask = ragged_batch(converted)
    said = read_edits(converted, ids, mask, time=TIMES, reader=heads)
    (
        said["rates"].sum() + said["substitute"][mask].logsumexp(-1).sum() + said["insert"][mask].amax(-1).sum()
    ).backward()
    for name in ("sub_logits", "ins_logits", "rate_heads"):
        assert all(weight.grad.count_nonzero() for weight in getattr(converted.model, name).parameters()), name
    assert converted.model.time_embedding.outer.weight.grad.count_nonzero()
    assert not converted.model.time_embedding.outer.weight.count_nonzero()  # where training starts


def test_a_shared_vocabulary_is_the_models_own(suite):
    """No third matrix of the vocabulary's size; insertions are told apart by a square one, which starts at zero."""
    row = next(row for row in FAMILIES if row.name == suite.family)
    options = HeadOptions(edit_rate_form="hazard", edit_vocabulary="shared", edit_heads_read="final")
    adapter = suite().adapter()
    model = adapter.build_model(with_heads(row, suite.own().tiny_config(), options)).eval()
    denoiser = Denoiser(model, adapter, suite().prepared_tokenizer(), logits_are_shifted=False)
    ids = random_ids(denoiser, 2, 8)

    def reader(states):
        assert states.insert is states.substitute is model.get_output_embeddings()
        return heads(states)

    with torch.no_grad():
        first = read_edits(denoiser, ids, None, time=None, reader=reader)
        torch.testing.assert_close(first["substitute"], denoiser.logits(ids))
        assert torch.equal(first["substitute"], first["insert"])
        model.insert_mix.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
        second = read_edits(denoiser, ids, None, time=None, reader=reader)
    assert torch.equal(second["substitute"], first["substitute"])
    assert not torch.allclose(second["insert"], first["insert"])
    assert not hasattr(model, "sub_logits")


@torch.no_grad()
def test_the_published_form_reads_modernbert_before_its_final_norm():
    """Which is why its published checkpoints cannot be read as others are."""
    from dllm_bert.conformance import TestModernBert
    from dllm_editflow.models.classes import EditFlowModernBertModel

    row = next(row for row in FAMILIES if row.name == "ModernBert")
    model = EditFlowModernBertModel(with_heads(row, TestModernBert().tiny_config(), HeadOptions())).eval()
    stir(model)
    ids = torch.arange(20).view(2, 10)
    states = model(input_ids=ids, edits=lambda states: states)
    before = []
    model.model.final_norm.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0]))
    after = model.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(states.substitute_hidden, model.head(before[0]))
    assert not torch.allclose(model.head(before[0]), model.head(after), atol=1e-2)


@torch.no_grad()
def test_the_published_form_says_nothing_of_a_shifted_first_token():
    from dllm_dream.conformance import TestAdapter
    from dllm_editflow.models.classes import EditFlowDreamModel

    row = next(row for row in FAMILIES if row.name == "Dream")
    model = EditFlowDreamModel(with_heads(row, TestAdapter().tiny_config(), HeadOptions())).eval()
    said = model(input_ids=torch.arange(20).view(2, 10), edits=heads)
    assert not said["rates"][:, 0, :INSERT].any()
    assert not said["substitute"][:, 0].any()
    assert said["rates"][:, 0, INSERT].all()


def test_a_model_without_heads_is_refused():
    denoiser = LLaDASuite().denoiser()
    with pytest.raises(OptionError, match=r"'llada' has no edit heads.*dllm convert --to editflow"):
        read_edits(denoiser, torch.tensor([[1, 2]]), None, time=None, reader=heads)


@pytest.mark.parametrize(
    ("field", "value"),
    [("edit_rate_form", "sigmoid"), ("edit_time_embedding", 1.5), ("edit_vocabulary", "tied"), ("edit_heads_read", "")],
)
def test_a_field_with_another_value_is_named(field, value):
    row = FAMILIES[0]
    config = with_heads(row, LLaDASuite().tiny_config())
    setattr(config, field, value)
    with pytest.raises(ModelLoadError, match=field):
        EditFlowLLaDAAdapter().build_model(config)


scores = st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3)


@given(scores)
def test_hazards_are_shares_of_one(values):
    rates = rates_from(torch.tensor(values), "hazard")
    assert (rates >= 0).all()
    assert rates[:INSERT].sum() <= 1 + 1e-6
    assert torch.equal(rates[INSERT], rates_from(torch.tensor(values), "softplus")[INSERT])


@pytest.mark.parametrize("form", ["hazard", "softplus"])
def test_rates_are_float32_and_start_at_the_prior(form):
    rates = rates_from(torch.tensor(prior_scores(form)).bfloat16(), form)
    assert rates.dtype == torch.float32
    torch.testing.assert_close(rates, torch.tensor(PRIOR), rtol=0.02, atol=0)  # bfloat16 holds 8 bits
    assert sum(PRIOR) == pytest.approx(0.05)


def test_one_later():
    rows = torch.arange(6.0).view(1, 3, 2) + 1
    assert one_later(rows, empty=False).tolist() == [[[1, 2], [1, 2], [3, 4]]]
    assert one_later(rows, empty=True).tolist() == [[[0, 0], [1, 2], [3, 4]]]
