"""The objective: published figures, what a model learns by it where that can be computed, and how it is fed.

Shapes: B batch, N columns, L tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from dllm_editflow import EditCorruption, EditFlowObjective
from dllm_editflow.collator import AlignWrapper
from dllm_editflow.columns import editable_rows, remaining, show
from dllm_editflow.dynamic import needleman_wunsch
from dllm_editflow.kappa import CosineKappa, LinearKappa, PolynomialKappa
from dllm_editflow.kinds import BLANK, COLUMN_PADDING, DELETE, INSERT, SUBSTITUTE
from dllm_editflow.models.heads import EditStates
from dllm_editflow.objective import AS_PUBLISHED
from dllm_editflow.toy import EditToyAdapter, edit_learner
from dllm_editflow.training import EditFlowConfig, EditFlowTrainer
from torch import nn

import dllm_core as dllm
from dllm_core.errors import DataError, OptionError
from dllm_core.models.denoiser import Denoiser
from dllm_core.training.collator import DiffusionCollator
from tests.editflow.published import cases, denoiser, tensor

SCHEDULES = {
    "LinearKappaScheduler": LinearKappa(),
    "CosineKappaScheduler": CosineKappa(),
    "CubicKappaScheduler": PolynomialKappa(),
}
MASK = 3  # of the toy


def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


def corruption_of(columns, target, time, editable=None, filler: int = 0) -> EditCorruption:
    """A corruption made by hand."""
    shown = show(columns, filler)
    return EditCorruption(
        input_ids=shown.input_ids,
        masked=remaining(columns, target, shown).counts.sum(-1) > 0,
        time=time,
        attention_mask=shown.attention_mask,
        columns=columns,
        target=target,
        rows=shown.rows,
        editable=columns > COLUMN_PADDING if editable is None else editable,
        column_weights=torch.ones(columns.shape),
    )


# ---------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(("folder", "case"), cases("editflow_loss"))
def test_published_losses_and_gradients(folder, case):
    own, params = denoiser(folder), case["params"]
    for source, target, z0, z1 in zip(*(params[name] for name in ("x0_ids", "x1_ids", "z0", "z1")), strict=True):
        assert needleman_wunsch(source, target) == (z0, z1)
    source, target = padded(params["z0"], COLUMN_PADDING), padded(params["z1"], COLUMN_PADDING)
    kappa, time = SCHEDULES[params["scheduler"]], tensor(folder, case, "in.t")[:, 0]
    torch.testing.assert_close(kappa.kappa(time), tensor(folder, case, "out.kappa")[:, 0])
    torch.testing.assert_close(kappa.weight(time), tensor(folder, case, "out.weight").view(-1))
    draws = torch.ones(target.shape)
    for row in range(len(target)):
        own_draws = tensor(folder, case, f"in.u_cols_{row}")
        draws[row, : len(own_draws)] = own_draws
    columns = torch.where(draws < kappa.kappa(time)[:, None], target, source)
    options = {"kappa": kappa, "max_weight": params["max_w"]}
    options["normalization"] = "sequence" if params["normalize_per_position"] else "batch"
    objective = EditFlowObjective(**AS_PUBLISHED | options)
    own.model.zero_grad()
    batch = {"input_ids": padded(params["x1_ids"], 0)}
    output = objective.loss(own, batch, corruption_of(columns, target, time, filler=own.pad_token_id))
    output.loss.backward()
    squares = [weight.grad.double().square().sum() for weight in own.model.parameters() if weight.grad is not None]
    norm = torch.stack(squares).sum().sqrt().float()
    torch.testing.assert_close(output.loss.detach(), tensor(folder, case, "out.loss").view(()), **case["tolerance"])
    torch.testing.assert_close(norm, tensor(folder, case, "out.grad_norm").view(()), **case["tolerance"])


# ----------------------------------------------------------------------------------------------------------- optimum


class Tables(nn.Module):
    """A model without structure: for every text and every token of it, rates and logits of their own."""

    def __init__(self, texts: list[tuple[int, ...]], width: int, vocab: int) -> None:
        super().__init__()
        self.texts, self.width = {text: number for number, text in enumerate(texts)}, width
        cells = len(texts) * width
        self.log_rates = nn.Parameter(torch.full((cells, 3), -1.0, dtype=torch.float64))
        self.substitute, self.insert = (nn.Linear(cells, vocab, bias=False, dtype=torch.float64) for _ in range(2))
        self.embedding = nn.Embedding(vocab, 1, dtype=torch.float64)
        self.config = SimpleNamespace(_attn_implementation="sdpa", model_type="tables")
        self.edit_options = None
        for head in (self.substitute, self.insert):
            nn.init.zeros_(head.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def cells(self, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        rows = [self.texts[tuple(row[mask].tolist())] for row, mask in zip(ids, real, strict=True)]
        return torch.tensor(rows)[:, None] * self.width + torch.arange(ids.shape[1])  # (B, L)

    def forward(self, input_ids, attention_mask, position_ids, *, time, edits, edits_are_shifted):
        cells = self.cells(input_ids, attention_mask)
        hidden = nn.functional.one_hot(cells, len(self.log_rates)).double()
        return edits(EditStates(self.log_rates[cells].exp(), hidden, hidden, self.substitute, self.insert))


# Aligned pairs behind a locked token 0, with targets of length 2, 3 and 4, all equally likely.
PAIRS = [
    ([0, 1, BLANK], [0, 1, 2]),
    ([0, 1, BLANK], [0, BLANK, 2]),
    ([0, 1, 2, BLANK], [0, 2, 2, 1]),
    ([0, 1, BLANK, BLANK], [0, 1, 1, 2]),
    ([0, BLANK], [0, 2]),
]
COLUMNS, VOCAB = 4, 4


def every_state(time: float) -> EditCorruption:
    """Each pair with each choice of its columns, as often as it is likely at kappa = 1/2."""
    rows = []
    for source, target in PAIRS:
        free = len(source) - 1
        for turned in itertools.product((False, True), repeat=free):
            now = [0, *(b if turn else a for turn, a, b in zip(turned, source[1:], target[1:], strict=True))]
            rows += [(now, target)] * 2 ** (COLUMNS - 1 - free)
    columns, target = (padded([row[side] for row in rows], COLUMN_PADDING) for side in (0, 1))
    editable = (columns > COLUMN_PADDING) & (torch.arange(columns.shape[1]) > 0)
    return corruption_of(columns, target, torch.full((len(rows),), time, dtype=torch.float64), editable)


def fit(objective: EditFlowObjective, corruption: EditCorruption) -> tuple[Tables, float]:
    ids, real = corruption.input_ids, corruption.attention_mask
    texts = sorted({tuple(row[mask].tolist()) for row, mask in zip(ids, real, strict=True)})
    model = Tables(texts, ids.shape[1], VOCAB)
    own = Denoiser(model, EditToyAdapter(), special_ids={"mask": 3, "pad": 0}, logits_are_shifted=False)
    batch = {"input_ids": ids}
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective.loss(own, batch, corruption).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    return model, closure().item()


def expected(model: Tables, corruption: EditCorruption, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior means of the remaining edits at every cell (C, 3), and of the inserted tokens (C, V)."""
    shown = show(corruption.columns, 0)
    left = remaining(corruption.columns, corruption.target, shown, weights[:, None] * corruption.column_weights)
    cells = model.cells(corruption.input_ids, corruption.attention_mask)
    there = (
        torch.zeros(len(model.log_rates))
        .double()
        .index_add(0, cells[corruption.attention_mask], weights[:, None].expand(cells.shape)[corruption.attention_mask])
    )
    counts = torch.zeros(len(there), 3).double().index_add(0, cells.flatten(), left.counts.flatten(0, 1).double())
    inserted = torch.zeros(len(there), VOCAB).double()
    at = cells[left.insertions[:, 0], left.insertions[:, 1]]
    inserted.index_put_((at, left.insertion_targets), left.insertion_weights.double(), accumulate=True)
    return counts / there.clamp(min=1e-9)[:, None], inserted


@pytest.mark.parametrize("normalization", ["batch", "sequence"])
def test_a_model_without_structure_learns_the_posterior(normalization):
    """Rates become the expected numbers of remaining edits, logits the shares of the missing tokens.

    Divided by each text's length (as published) the texts count by one over it: the learned law is tilted.
    """
    corruption = every_state(time=0.5)
    objective = EditFlowObjective(kappa="linear", normalization=normalization)
    model, loss = fit(objective, corruption)
    lengths = (corruption.target >= 0).sum(1).double()
    weights = torch.ones_like(lengths) if normalization == "batch" else 1 / lengths
    rates, inserted = expected(model, corruption, weights)
    learned = model.log_rates.detach().exp()
    allowed = editable_rows(corruption.editable, corruption.columns, show(corruption.columns, 0))
    for kinds, where in (([SUBSTITUTE, DELETE], allowed.tokens), ([INSERT], allowed.gaps)):
        cells = model.cells(corruption.input_ids, corruption.attention_mask)[where].unique()
        torch.testing.assert_close(learned[cells][:, kinds], rates[cells][:, kinds], atol=2e-4, rtol=0)
    bags = inserted.sum(1) > 0
    shares = inserted[bags] / inserted[bags].sum(1, keepdim=True)
    torch.testing.assert_close(model.insert.weight.T[bags].softmax(-1).detach(), shares, atol=2e-3, rtol=0)
    tilted, plain = weights / weights.sum(), torch.ones_like(weights) / len(weights)
    assert torch.equal(tilted, plain) == (normalization == "batch")
    assert loss == pytest.approx(
        analytic_minimum(objective, corruption, rates, shares, bags, inserted, model), abs=1e-4
    )


def analytic_minimum(objective, corruption, rates, shares, bags, inserted, model) -> float:
    """The loss where rates and logits are the posterior's; substitutions have one possible token each, or two."""
    lengths = (corruption.target >= 0).sum(1)
    scale = 1 / lengths.double() if objective.normalization == "sequence" else torch.ones(len(lengths)).double()
    shown = show(corruption.columns, 0)
    left = remaining(corruption.columns, corruption.target, shown)
    cells = model.cells(corruption.input_ids, corruption.attention_mask)
    tokens, gaps = editable_rows(corruption.editable, corruption.columns, shown)
    allowed = torch.stack([tokens, tokens, gaps], -1)
    own = rates[cells] * allowed
    surviving = (own.sum((1, 2)) * scale).sum()
    logs = (left.counts * own.clamp(min=1e-300).log()).sum((1, 2)) * scale
    table = torch.zeros_like(inserted)
    table[bags] = shares
    at = cells[left.insertions[:, 0], left.insertions[:, 1]]
    bag = (table[at, left.insertion_targets].log() * scale[left.insertions[:, 0]]).sum()
    substituted = model.substitute.weight.T.detach()[cells]  # (B, L, V)
    substituted = substituted.scatter(2, corruption.input_ids[..., None], -torch.inf).log_softmax(-1)
    chosen = substituted[left.substitutions].gather(1, left.substitution_targets[:, None])[:, 0]
    sub = (chosen * scale[left.substitutions.nonzero()[:, 0]]).sum()
    weight = 1 / (0.5 + 1e-6)
    return float(weight * (surviving - logs.sum() - bag - sub) / len(lengths))


def test_a_column_counts_as_much_as_its_rate():
    """As localized propagation has it: the rates that are learned are the expected rates of the remaining columns."""
    corruption = every_state(time=0.5)
    generator = torch.Generator().manual_seed(0)
    weights = 0.5 + 2.5 * torch.rand(corruption.columns.shape, generator=generator)
    corruption = replace(corruption, column_weights=weights)
    model, _ = fit(EditFlowObjective(kappa="linear"), corruption)
    rates, inserted = expected(model, corruption, torch.ones(len(weights)).double())
    allowed = editable_rows(corruption.editable, corruption.columns, show(corruption.columns, 0))
    learned = model.log_rates.detach().exp()
    for kinds, where in (([SUBSTITUTE, DELETE], allowed.tokens), ([INSERT], allowed.gaps)):
        cells = model.cells(corruption.input_ids, corruption.attention_mask)[where].unique()
        torch.testing.assert_close(learned[cells][:, kinds], rates[cells][:, kinds], atol=2e-3, rtol=0)
    even = replace(corruption, column_weights=torch.ones_like(weights))
    assert (rates - expected(model, even, torch.ones(len(weights)).double())[0]).abs().max() > 0.3
    bags = inserted.sum(1) > 0
    shares = inserted[bags] / inserted[bags].sum(1, keepdim=True)
    torch.testing.assert_close(model.insert.weight.T[bags].softmax(-1).detach(), shares, atol=2e-3, rtol=0)


def test_a_weight_of_the_time_alone_leaves_the_optimum():
    """Two times with very different weights: each has its own optimum, clamped or not."""
    corruption = every_state(time=0.5)
    free, _ = fit(EditFlowObjective(kappa="linear", max_weight=None), corruption)
    clamped, _ = fit(EditFlowObjective(kappa="linear", max_weight=0.3), corruption)
    torch.testing.assert_close(free.log_rates.exp(), clamped.log_rates.exp(), atol=2e-3, rtol=0)


# ----------------------------------------------------------------------------------------------------------- feeding


def batch_of(rows: int = 5) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, (rows, 6), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :2] = -100
    return {"input_ids": ids, "labels": labels}


def draw(objective: EditFlowObjective, batch, own=None, seed: int = 0) -> EditCorruption:
    own = edit_learner() if own is None else own
    return objective.corrupt(batch, own, generator=torch.Generator().manual_seed(seed))


def test_propagation_of_zero_is_none():
    batch, own = batch_of(), edit_learner()
    plain = EditFlowObjective(source="noise[length:5]", alignment="random")
    without = draw(plain, batch)
    assert torch.equal(without.column_weights, torch.ones_like(without.column_weights))
    pulled = draw(replace(plain, propagation=1e-9), batch)
    assert torch.equal(pulled.columns, without.columns)
    assert plain.loss(own, batch, pulled).loss.item() == pytest.approx(
        plain.loss(own, batch, without).loss.item(), rel=1e-6
    )
    assert not torch.equal(draw(replace(plain, propagation=8.0), batch).columns, without.columns)


def test_locked_tokens_stay_and_have_no_rates():
    """The loss does not change with the rates of what the sampler never asks."""
    batch, own = batch_of(), edit_learner()
    objective = EditFlowObjective(source="noise[length:4]", alignment="random")
    for seed in range(20):
        corruption = draw(objective, batch, own, seed)
        assert torch.equal(corruption.input_ids[:, :2], batch["input_ids"][:, :2])
        assert not corruption.masked[:, 0].any()
    counted = objective.loss(own, batch, corruption).loss
    published = replace(objective, locked_rates=True).loss(own, batch, corruption).loss
    assert published > counted


def test_a_token_is_no_substitute_for_itself():
    """Left out of the softmax, it leaves more to the right one; published code lets it in."""
    batch, own = batch_of(), edit_learner()
    objective = EditFlowObjective(source="noise[length:4]", alignment="random", time_epsilon=0.5)
    corruption = draw(objective, batch, own)
    left = remaining(corruption.columns, corruption.target, show(corruption.columns, 0))
    assert len(left.substitution_targets) > 2
    alone, among = (replace(objective, own_token=each).loss(own, batch, corruption).loss for each in (False, True))
    assert alone < among


def test_a_hidden_condition_is_the_locked_tokens_but_the_first():
    batch, own = batch_of(200), edit_learner()
    objective = EditFlowObjective(source="identity", condition_dropout=0.3)
    hidden = draw(objective, batch, own).input_ids == own.mask_token_id
    assert torch.equal(hidden.any(1), hidden[:, 1])
    assert hidden.sum() == hidden[:, 1].sum()
    assert 30 <= hidden[:, 1].sum() <= 90  # 60 of 200, four deviations of 6.5


def test_the_collator_gives_what_the_objective_would_draw_from():
    own = edit_learner(bos=0)
    examples = [{"input_ids": [0, 1, 2, 1], "labels": [-100, 1, 2, 1], "source_ids": [1, 1]}, {"input_ids": [2, 2]}]
    examples[1]["source_ids"] = [2, 1, 2]
    inner = DiffusionCollator(pad_token_id=0)
    batch = AlignWrapper(inner, own.mask_token_id, own.bos_token_id, own.text_token_ids, source="draft")(examples)
    for row, example in enumerate(examples):
        source, target = (
            [t for t in batch[name][row].tolist() if t >= 0] for name in ("source_columns", "target_columns")
        )
        assert source == [0, *example["source_ids"]]
        assert target == (example["input_ids"] if row == 0 else [0, 2, 2])
    assert not batch["editable_columns"][:, 0].any()
    corruption = draw(EditFlowObjective(source="empty"), batch, own)
    assert torch.equal(corruption.target, batch["target_columns"])
    again = AlignWrapper(inner, own.mask_token_id, own.bos_token_id, own.text_token_ids, source="draft")(examples)
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_what_does_not_fit_is_refused():
    batch = batch_of()
    with pytest.raises(OptionError, match="dllm convert"):
        EditFlowObjective().check_model(dllm.load("llada-tiny"))
    with pytest.raises(DataError, match="packing"):
        EditFlowObjective().check_batch(batch | {"document_ids": torch.zeros_like(batch["input_ids"])})
    with pytest.raises(DataError, match="source_ids"):
        draw(EditFlowObjective(source="draft"), batch)
    with pytest.raises(OptionError, match="EditFlowConfig"):
        EditFlowTrainer(edit_learner(), dllm.MDLMConfig(output_dir="unused", report_to=[]))
    with pytest.raises(OptionError, match="alignment"):
        EditFlowConfig(output_dir="unused", alignment="best")


def test_special_tokens_are_no_text():
    own = edit_learner(bos=1)
    assert own.text_token_ids.tolist() == [2]  # 0 pads, 1 begins, 3 masks
