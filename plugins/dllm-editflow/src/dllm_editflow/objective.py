"""The Edit Flows objective: learn at which rate to insert, delete and substitute, and what.

A column that still shows its source turns at the rate w(t) = kappa' / (1 - kappa). The model gives rates without that
factor, so what it learns is bounded: r of a deletion or substitution is the probability that the token is still to be
deleted or substituted, r of an insertion the expected number of tokens that are still missing behind it.

Source: Havasi et al., "Edit Flows", arXiv:2506.09018, equation 23; ZHZisZZ/dllm at ca17675,
dllm/pipelines/editflow/trainer.py, whose figures are reproduced with the options of `AS_PUBLISHED`.

Shapes: B batch, L tokens, N columns, S substitutions, I insertions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dllm_core.config import one_of
from dllm_core.errors import DataError, OptionError
from dllm_core.noise.corruption import Corruption
from dllm_core.objectives.base import Batch, Objective, ObjectiveOutput, maskable_positions
from dllm_editflow.alignment import MODES
from dllm_editflow.columns import Shown, editable_rows, remaining, show
from dllm_editflow.coupling import Coupling, couple, rows_of_batch
from dllm_editflow.kappa import KappaSchedule, get_kappa
from dllm_editflow.kinds import INSERT
from dllm_editflow.propagation import spread
from dllm_editflow.scoring import EditScores, ScoreEdits
from dllm_editflow.sources import Tokens, parse_source

if TYPE_CHECKING:
    from dllm_core.models.denoiser import Denoiser

NORMALIZATIONS = ("batch", "sequence", "token")
AS_PUBLISHED = {
    "kappa": "published",
    "normalization": "sequence",
    "locked_rates": True,
    "own_token": True,
    "alignment": "published",
}
LOWEST_RATE = 1e-12  # under the logarithm, as published


@dataclass(frozen=True, kw_only=True, eq=False)
class EditCorruption(Corruption):
    """Texts on their way from source to target, and how they came about.

    Args:
        input_ids: (B, L) int64, what the model sees.
        masked: (B, L) bool, the tokens at which an edit is still to be made.
        time: (B,) float, 0 = source, 1 = target.
        attention_mask: (B, L) bool, True = a token.
        columns, target: (B, N) int64, what the columns show now and in the end.
        rows: (B, N) int64, the token that each column belongs to.
        editable: (B, N) bool, the columns that may change.
        column_weights: (B, N) float, the rate of each column in units of w(t); 1 where columns turn on their own.
    """

    attention_mask: Tensor
    columns: Tensor
    target: Tensor
    rows: Tensor
    editable: Tensor
    column_weights: Tensor


@dataclass(frozen=True, kw_only=True)
class EditFlowObjective(Objective):
    """Edit Flows.

    Args:
        source: what texts are made from, see `dllm_editflow.sources`.
        alignment: which token becomes which, see `dllm_editflow.alignment`.
        kappa: ``linear``, ``cubic`` (t^3, the paper's), ``cosine``, ``published`` (the existing framework's cubic), or
            an instance.
        max_weight: w(t) is no larger than this; None: unbounded. It depends on the time alone, so the optimum of a
            model that knows the time stays where it is.
        normalization: the loss is divided by the number of sequences (``batch``), that and each sequence's own length
            (``sequence``, as published: the learned lengths are tilted towards short ones), or the number of tokens to
            learn (``token``: tilted a little where batches are small).
        propagation: rate at which a column that has turned pulls its neighbours along, per side and unit of time; 0:
            columns turn on their own.
        condition_dropout: share of the texts whose locked tokens, but for the first, are hidden behind the mask token,
            for classifier-free guidance.
        time_epsilon: times are drawn between 0 and 1 minus this, in [0, 1).
        locked_rates: let the rates of locked tokens count, which no edit ever balances (as published); they are
            ignored otherwise, as the sampler ignores them.
        own_token: a token may be substituted by itself, which is no edit (as published).

    Raises:
        OptionError: an option out of range.
    """

    needs: ClassVar[tuple[str, ...]] = ("supports_edits",)

    source: str = "masks[length:64]"
    alignment: str = "optimal-shuffled"
    kappa: str | KappaSchedule = "cubic"
    max_weight: float | None = 20.0
    normalization: str = "batch"
    propagation: float = 0.0
    condition_dropout: float = 0.0
    time_epsilon: float = 1e-3
    locked_rates: bool = False
    own_token: bool = False

    def __post_init__(self) -> None:
        parse_source(self.source)
        one_of("alignment", self.alignment, MODES)
        one_of("normalization", self.normalization, NORMALIZATIONS)
        get_kappa(self.kappa)
        if self.max_weight is not None and not self.max_weight > 0:
            raise OptionError(f"max_weight must be above 0, or none; got {self.max_weight}; usual is 20")
        if not self.propagation >= 0:
            raise OptionError(f"propagation must be at least 0, got {self.propagation}; the paper has 0 or about 4")
        for name in ("condition_dropout", "time_epsilon"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")

    def check_model(self, denoiser: Denoiser) -> None:
        """Raise where the model has no heads for edits.

        Raises:
            OptionError: the message says how to get them.
        """
        if not getattr(denoiser.adapter, "supports_edits", False):
            raise OptionError(
                f"objective editflow needs a model with edit heads, which {type(denoiser.adapter).__name__} does not "
                "serve; make one with: dllm convert CHECKPOINT FOLDER --to editflow"
            )

    def check_batch(self, batch: Batch) -> None:
        """Raise where several texts share a row.

        Raises:
            DataError: the batch is packed.
        """
        if batch.get("document_ids") is not None:
            raise DataError("edit flows change the length of texts, so they cannot be packed; set data.packing=false")

    def corrupt(self, batch: Batch, denoiser: Denoiser, *, generator: torch.Generator) -> EditCorruption:
        """Draw sources (unless the batch brings columns), one time a text, and which columns have turned by then."""
        coupling = self.coupling(batch, denoiser, generator)
        device = batch["input_ids"].device
        time = (1 - self.time_epsilon) * torch.rand(len(coupling.source), generator=generator, device=generator.device)
        draws = torch.rand(coupling.source.shape, generator=generator, device=generator.device)
        turned, weights = self._turned(coupling, time, draws, generator)
        columns = torch.where(turned.to(device), coupling.target, coupling.source)
        shown = show(columns, denoiser.pad_token_id)
        _check_length(shown.input_ids, denoiser.context_length)
        left = remaining(columns, coupling.target, shown)
        return EditCorruption(
            input_ids=self._without_condition(shown, columns, coupling, denoiser, generator),
            masked=left.counts.sum(-1) > 0,
            time=time.to(device),
            attention_mask=shown.attention_mask,
            columns=columns,
            target=coupling.target,
            rows=shown.rows,
            editable=coupling.editable,
            column_weights=weights.to(device),
        )

    def coupling(self, batch: Batch, denoiser: Denoiser, generator: torch.Generator) -> Coupling:
        """Source and target of a batch, as its collator has aligned them, or drawn and aligned here."""
        device = batch["input_ids"].device
        if batch.get("source_columns") is not None:
            names = ("source_columns", "target_columns", "editable_columns")
            return Coupling(*(batch[name].to(device) for name in names))
        on_host = torch.Generator().manual_seed(
            int(torch.randint(2**62, (), generator=generator, device=generator.device))
        )
        rows = rows_of_batch(batch, denoiser.bos_token_id)
        tokens = Tokens(denoiser.mask_token_id, denoiser.text_token_ids)
        made = couple(rows, parse_source(self.source), tokens, self.alignment, on_host)
        return Coupling(*(side.to(device) for side in made))

    def loss(
        self, denoiser: Denoiser, batch: Batch, corruption: EditCorruption, *, normalizer: Tensor | None = None
    ) -> ObjectiveOutput:
        """The rates of all edits, less the logarithms of those that are still to be made; weighed by w(t)."""
        shown = Shown(corruption.input_ids, corruption.attention_mask, corruption.rows)
        left = remaining(corruption.columns, corruption.target, shown, corruption.column_weights)
        scores = ScoreEdits(left, None if self.own_token else corruption.input_ids).read(
            denoiser, corruption.input_ids, corruption.attention_mask, corruption.time
        )
        total = (scores.rates * self._counted(corruption, shown)).sum((1, 2))  # (B,)
        found = (left.counts * scores.rates.clamp(min=LOWEST_RATE).log()).sum((1, 2)) - scores.nll
        raw = get_kappa(self.kappa).weight(corruption.time)  # (B,)
        weight = raw if self.max_weight is None else raw.clamp(max=self.max_weight)
        denominator = (self.normalizer(batch) if normalizer is None else normalizer).clamp(min=1)
        edits = left.counts.sum((1, 2))
        return ObjectiveOutput(
            loss=(weight * self._scale(corruption) * (total - found)).sum() / denominator,
            nll_sum=(raw * (total - edits - found)).sum().detach(),
            token_count=maskable_positions(batch).sum(),
            metrics=_metrics(left.counts, scores),
        )

    def normalizer(self, batch: Batch) -> Tensor:
        """Sequences (``batch``, ``sequence``), or tokens to learn (``token``); scalar int64."""
        if self.normalization == "token":
            return maskable_positions(batch).sum()
        return torch.tensor(len(batch["input_ids"]), device=batch["input_ids"].device)

    def _scale(self, corruption: EditCorruption) -> Tensor:
        """What each text is multiplied by; (B,)."""
        if self.normalization != "sequence":
            return torch.ones_like(corruption.time)
        return 1 / (corruption.target >= 0).sum(1).clamp(min=1)

    def _counted(self, corruption: EditCorruption, shown: Shown) -> Tensor:
        """(B, L, 3) bool: the rates that count."""
        if self.locked_rates:
            return shown.attention_mask[..., None]
        tokens, gaps = editable_rows(corruption.editable, corruption.columns, shown)
        return torch.stack([tokens, tokens, gaps], -1)

    def _turned(
        self, coupling: Coupling, time: Tensor, draws: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(B, N) which columns show their target at the time, and their rates in units of w(t)."""
        kappa = get_kappa(self.kappa)
        if not self.propagation:
            return draws < kappa.kappa(time)[:, None], torch.ones_like(draws)
        edits = (coupling.source != coupling.target).to(generator.device)
        turned, rates = spread(edits, time, draws, kappa, self.propagation, generator)
        return turned, rates / kappa.weight(time)[:, None]

    def _without_condition(
        self, shown: Shown, columns: Tensor, coupling: Coupling, denoiser: Denoiser, generator: torch.Generator
    ) -> Tensor:
        """What the model sees: some texts without their locked tokens. (B, L)"""
        if not self.condition_dropout:
            return shown.input_ids
        drawn = torch.rand(len(columns), generator=generator, device=generator.device).to(columns.device)
        tokens, _ = editable_rows(coupling.editable, columns, shown)
        hidden = ~tokens & shown.attention_mask & (drawn < self.condition_dropout)[:, None]
        hidden[:, 0] = False
        return shown.input_ids.masked_fill(hidden, denoiser.mask_token_id)


def _metrics(counts: Tensor, scores: EditScores) -> dict[str, Tensor]:
    edits = counts.sum().clamp(min=1)
    return {
        "edits": counts.sum((1, 2)).mean(),
        "token_nll": (scores.nll.sum() / counts[..., [0, INSERT]].sum().clamp(min=1)).detach(),
        "rate_ratio": (scores.rates.sum() / edits).detach(),
    }


def _check_length(input_ids: Tensor, context_length: int | None) -> None:
    if context_length is not None and input_ids.shape[1] > context_length:
        raise DataError(
            f"a text on its way is {input_ids.shape[1]} tokens long, the model reads at most {context_length}; shorten "
            "the data, or take a shorter source"
        )
