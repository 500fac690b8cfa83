"""Broken objectives: each is the core's with one defect, which one check of `ObjectiveTests` must catch."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from dllm_core.conformance.objective import ObjectiveTests
from dllm_core.models.denoiser import Denoiser
from dllm_core.noise import Corruption, apply_mask, get_schedule
from dllm_core.objectives import Batch, MDLMObjective, ObjectiveOutput
from dllm_core.objectives.base import maskable_positions
from tests.conformance.mutant import Mutant, suite_for

Logits = Callable[..., Tensor]


class Corrupts(MDLMObjective):
    """Base of objectives whose corruption comes out wrong."""

    def corrupt(self, batch: Batch, denoiser: Denoiser, *, generator: torch.Generator) -> Corruption:
        return self.spoil(super().corrupt(batch, denoiser, generator=generator), batch, denoiser, generator)

    def spoil(self, drawn: Corruption, batch: Batch, denoiser: Denoiser, generator: torch.Generator) -> Corruption:
        raise NotImplementedError


class Reads(MDLMObjective):
    """Base of objectives that get at the scores in another way."""

    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        around = copy.copy(denoiser)

        def nll(ids, mask=None, *, at, targets, position_ids=None, attention=None) -> Tensor:
            return functional.cross_entropy(self.scores(denoiser, ids, mask, at), targets[at], reduction="none")

        around.nll = nll
        return super().loss(around, batch, corruption, normalizer=normalizer)

    def scores(self, denoiser: Denoiser, ids: Tensor, mask: Tensor | None, at: Tensor) -> Tensor:
        raise NotImplementedError


class Returns(MDLMObjective):
    """Base of objectives whose output comes out wrong."""

    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        return self.spoil(super().loss(denoiser, batch, corruption, normalizer=normalizer), denoiser, batch, corruption)

    def spoil(self, output, denoiser, batch, corruption) -> ObjectiveOutput:
        raise NotImplementedError


# ----------------------------------------------------------------------------------------------------- the options


class Undecorated(MDLMObjective):
    pass


@dataclass(frozen=True, kw_only=True, eq=False)
class NeverEqual(MDLMObjective):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass(frozen=True, kw_only=True)
class NoObjective:
    """Derives from nothing."""


class AcceptsAnyEpsilon(MDLMObjective):
    def __post_init__(self) -> None:
        get_schedule(self.schedule)


# -------------------------------------------------------------------------------------------------- the corruption


class DrawsFromTheProcess(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator) -> Corruption:
        own = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        return super().corrupt(batch, denoiser, generator=own)


class SeedsTheProcess(Corrupts):
    def spoil(self, drawn, batch, denoiser, generator) -> Corruption:
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        return drawn


class HidesTheSameEveryTime(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator) -> Corruption:
        return super().corrupt(batch, denoiser, generator=torch.Generator().manual_seed(0))


class CopiesTheGenerator(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator) -> Corruption:
        fresh = torch.Generator().manual_seed(generator.initial_seed())
        return super().corrupt(batch, denoiser, generator=fresh)


class OneTimeForTheBatch(Corrupts):
    def spoil(self, drawn, batch, denoiser, generator) -> Corruption:
        return replace(drawn, time=drawn.time[:1].expand_as(drawn.time))


class ForgetsEpsilon(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator) -> Corruption:
        return MDLMObjective(schedule=self.schedule, time_epsilon=0.0).corrupt(batch, denoiser, generator=generator)


class SeesTheAnswer(Corrupts):
    def spoil(self, drawn, batch, denoiser, generator) -> Corruption:
        return replace(drawn, input_ids=batch["input_ids"])


class HidesBehindPadding(Corrupts):
    def spoil(self, drawn, batch, denoiser, generator) -> Corruption:
        return apply_mask(batch["input_ids"], drawn.masked, denoiser.pad_token_id, drawn.time)


class HidesContext(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator) -> Corruption:
        bare = {name: value for name, value in batch.items() if name != "labels"}
        return super().corrupt(bare, denoiser, generator=generator)


class HidesPadding(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator) -> Corruption:
        labels = batch["input_ids"].masked_fill(batch.get("labels", batch["input_ids"]) == -100, -100)
        return super().corrupt({"input_ids": batch["input_ids"], "labels": labels}, denoiser, generator=generator)


class NeedsLabels(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        nothing = torch.full_like(batch["input_ids"], -100)
        return super().loss(denoiser, {"labels": nothing, **batch}, corruption, normalizer=normalizer)


class KnowsBoolMasksOnly(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator) -> Corruption:
        mask = batch.get("attention_mask")
        bare = {name: value for name, value in batch.items() if name != "attention_mask"}
        known = {} if mask is None or mask.dtype != torch.bool else {"attention_mask": mask}
        return super().corrupt(bare | known, denoiser, generator=generator)


class BroadcastsLabels(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator) -> Corruption:
        labels = batch.get("labels", batch["input_ids"])[:, :1].expand_as(batch["input_ids"])
        return super().corrupt({**batch, "labels": labels}, denoiser, generator=generator)


class SquaresTheTime(MDLMObjective):
    def corrupt(self, batch, denoiser, *, generator) -> Corruption:
        ids = batch["input_ids"]
        time = torch.rand(len(ids), generator=generator).square().clamp(min=self.time_epsilon)
        draws = torch.rand(ids.shape, generator=generator)
        masked = (draws < (1 - get_schedule(self.schedule).alpha(time))[:, None]) & maskable_positions(batch)
        return apply_mask(ids, masked, denoiser.mask_token_id, time)


class HidesWithTheCleanRate(Corrupts):
    def spoil(self, drawn, batch, denoiser, generator) -> Corruption:
        flipped = maskable_positions(batch) & ~drawn.masked
        return apply_mask(batch["input_ids"], flipped, denoiser.mask_token_id, drawn.time)


class OneDrawForARow(Corrupts):
    def spoil(self, drawn, batch, denoiser, generator) -> Corruption:
        ids = batch["input_ids"]
        draws = torch.rand(len(ids), 1, generator=generator)
        masked = (draws < drawn.time[:, None]) & maskable_positions(batch)
        return apply_mask(ids, masked, denoiser.mask_token_id, drawn.time)


class HidesARoundedNumber(Corrupts):
    def spoil(self, drawn, batch, denoiser, generator) -> Corruption:
        ids = batch["input_ids"]
        rank = torch.rand(ids.shape, generator=generator).argsort(1).argsort(1)
        masked = (rank < (drawn.time * ids.shape[1]).round()[:, None]) & maskable_positions(batch)
        return apply_mask(ids, masked, denoiser.mask_token_id, drawn.time)


class SparesTheLastToken(Corrupts):
    def spoil(self, drawn, batch, denoiser, generator) -> Corruption:
        masked = drawn.masked.clone()
        masked[:, -1] = False
        return apply_mask(batch["input_ids"], masked, denoiser.mask_token_id, drawn.time)


class TimesOfOtherRows(Corrupts):
    def spoil(self, drawn, batch, denoiser, generator) -> Corruption:
        return replace(drawn, time=drawn.time.roll(1))


class FillsInPlace(Corrupts):
    def spoil(self, drawn, batch, denoiser, generator) -> Corruption:
        batch["input_ids"].masked_fill_(drawn.masked, denoiser.mask_token_id)
        return drawn


# ------------------------------------------------------------------------------------------------------- the scores


class DetachesTheBackbone(Reads):
    def scores(self, denoiser, ids, mask, at) -> Tensor:
        head = denoiser.bare_model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
        try:
            return denoiser.logits(ids, mask, at=at)
        finally:
            handle.remove()


class DropsTheAttentionMask(Reads):
    def scores(self, denoiser, ids, mask, at) -> Tensor:
        return denoiser.logits(ids, at=at)


class SoftmaxInTheModelsPrecision(Reads):
    def scores(self, denoiser, ids, mask, at) -> Tensor:
        return denoiser.logits(ids, mask, at=at).log_softmax(-1)


class ReadsTheModelItself(Reads):
    def scores(self, denoiser, ids, mask, at) -> Tensor:
        return denoiser.model(input_ids=ids, attention_mask=mask).logits[at]


class AsksForEveryRow(Reads):
    def scores(self, denoiser, ids, mask, at) -> Tensor:
        rows = range(len(ids))
        masks = [None if mask is None else mask[row, None] for row in rows]
        return torch.cat([denoiser.logits(ids[row, None], masks[row], at=at[row, None]) for row in rows])


class ScoresEverything(Reads):
    def scores(self, denoiser, ids, mask, at) -> Tensor:
        return denoiser.logits(ids, mask)[at]


# --------------------------------------------------------------------------------------------------------- the loss


class KeepsTheGraph(Returns):
    def spoil(self, output, denoiser, batch, corruption) -> ObjectiveOutput:
        return replace(output, metrics=output.metrics | {"doubled": output.loss * 2})


class MeansOfNothing(Returns):
    def spoil(self, output, denoiser, batch, corruption) -> ObjectiveOutput:
        learned = maskable_positions(batch)
        share = (corruption.masked & learned).sum(1) / learned.sum(1)
        return replace(output, metrics={"masked_fraction": share.mean()})


class CountsEveryToken(Returns):
    def spoil(self, output, denoiser, batch, corruption) -> ObjectiveOutput:
        return replace(output, token_count=torch.tensor(batch["input_ids"].numel()))


class CountsHiddenTokens(Returns):
    def spoil(self, output, denoiser, batch, corruption) -> ObjectiveOutput:
        return replace(output, token_count=corruption.masked.sum())


class IgnoresTheStepsNormalizer(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        return super().loss(denoiser, batch, corruption)


class NormalizesTheBound(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        output = super().loss(denoiser, batch, corruption, normalizer=normalizer)
        return replace(output, nll_sum=output.loss.detach())


class EveryBatchCountsOne(MDLMObjective):
    def normalizer(self, batch) -> Tensor:
        return torch.tensor(1)


class WeighsByTheLongestRow(MDLMObjective):
    def _scale(self, batch, maskable) -> Tensor:
        return super()._scale(batch, maskable) / maskable.sum(1).max()


class MeanBound(Returns):
    def spoil(self, output, denoiser, batch, corruption) -> ObjectiveOutput:
        return replace(output, nll_sum=output.nll_sum / len(batch["input_ids"]))


class TrainsWithoutWeights(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        output = super().loss(denoiser, batch, corruption, normalizer=normalizer)
        plain = MDLMObjective(schedule=self.schedule, weighting="uniform", normalization=self.normalization)
        return replace(output, loss=plain.loss(denoiser, batch, corruption, normalizer=normalizer).loss)


class PairsTimesInReverse(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        turned = replace(corruption, time=corruption.time.flip(0))
        return super().loss(denoiser, batch, turned, normalizer=normalizer)


class LearnsContext(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        labels = torch.where(corruption.masked, batch["input_ids"], batch.get("labels", batch["input_ids"]))
        return super().loss(denoiser, {**batch, "labels": labels}, corruption, normalizer=normalizer)


class LearnsPadding(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        bare = {name: value for name, value in batch.items() if name != "attention_mask"}
        return super().loss(denoiser, bare, corruption, normalizer=normalizer)


class DrawsInTheLoss(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        own = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        fresh = self.corrupt(batch, denoiser, generator=own)
        return super().loss(denoiser, batch, fresh, normalizer=normalizer)


class KeepsTheLastNormalizer(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        last = self.__dict__.get("last", self.normalizer(batch))
        object.__setattr__(self, "last", self.normalizer(batch))
        return super().loss(denoiser, batch, corruption, normalizer=last if normalizer is None else normalizer)


class RunsBackward(Returns):
    def spoil(self, output, denoiser, batch, corruption) -> ObjectiveOutput:
        output.loss.backward(retain_graph=True)
        return output


class OverwritesLabels(Returns):
    def spoil(self, output, denoiser, batch, corruption) -> ObjectiveOutput:
        batch["labels"][~corruption.masked] = -100
        return output


class SkipsTheModel(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        if not (corruption.masked & maskable_positions(batch)).any():
            zero = torch.zeros(())
            return ObjectiveOutput(loss=zero, nll_sum=zero, token_count=maskable_positions(batch).sum())
        return super().loss(denoiser, batch, corruption, normalizer=normalizer)


class DividesByHiddenTokens(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        output = super().loss(denoiser, batch, corruption, normalizer=torch.tensor(1))
        return replace(output, loss=output.loss / corruption.masked.sum().clamp(min=1))


class MeansNoLosses(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        output = super().loss(denoiser, batch, corruption, normalizer=normalizer)
        return replace(output, loss=output.loss + 0 / corruption.masked.sum())


class RoundsTheLoss(Returns):
    def spoil(self, output, denoiser, batch, corruption) -> ObjectiveOutput:
        return replace(output, loss=output.loss.to(denoiser.dtype))


class WeighsWithoutTime(MDLMObjective):
    def loss(self, denoiser, batch, corruption, *, normalizer=None) -> ObjectiveOutput:
        timeless = replace(corruption, time=torch.full_like(corruption.time, 0.5))
        return super().loss(denoiser, batch, timeless, normalizer=normalizer)


class BoundWithTheLossWeights(Returns):
    def spoil(self, output, denoiser, batch, corruption) -> ObjectiveOutput:
        return replace(output, nll_sum=output.loss.detach() * self.normalizer(batch))


CAPABILITIES: Mapping[str, object] = {"loss_is_bound": True, "bad_options": {"time_epsilon": [-0.1, 1, 5]}}


def broken(check: str, objective: type, why: str, **attributes: object) -> Mutant:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", objective.__name__).lower()
    suite = suite_for(ObjectiveTests, objective, **(CAPABILITIES | attributes))
    return Mutant(check=f"ObjectiveTests.{check}", name=name, suite=suite, why=why)


MUTANTS = [
    broken("test_options_are_a_frozen_dataclass", Undecorated, "is no dataclass of its own"),
    broken("test_options_are_a_frozen_dataclass", NeverEqual, "is equal to no other with the same options"),
    broken("test_options_are_a_frozen_dataclass", NoObjective, "does not derive from Objective"),
    broken("test_bad_options_are_refused", AcceptsAnyEpsilon, "accepts a lowest time of 5"),
    broken("test_randomness_is_the_generators_alone", DrawsFromTheProcess, "draws from the process's generators"),
    broken("test_randomness_is_the_generators_alone", SeedsTheProcess, "seeds the process for every batch (dllm GRPO)"),
    broken("test_randomness_is_the_generators_alone", HidesTheSameEveryTime, "ignores the generator"),
    broken("test_randomness_is_the_generators_alone", CopiesTheGenerator, "starts the generator anew each time"),
    broken("test_times_lie_in_their_range", OneTimeForTheBatch, "draws one time for the whole batch"),
    broken(
        "test_times_lie_in_their_range", ForgetsEpsilon, "draws times below the lowest", options={"time_epsilon": 0.3}
    ),
    broken("test_hidden_tokens_are_masks_and_others_stay", SeesTheAnswer, "lets hidden tokens be read"),
    broken("test_hidden_tokens_are_masks_and_others_stay", HidesBehindPadding, "hides tokens behind the padding token"),
    broken("test_ignored_tokens_are_never_hidden", HidesContext, "hides the prompt too"),
    broken("test_ignored_tokens_are_never_hidden", HidesPadding, "hides padding too"),
    broken("test_without_labels_every_real_token_is_learned", NeedsLabels, "learns nothing without labels"),
    broken("test_without_labels_every_real_token_is_learned", KnowsBoolMasksOnly, "reads attention masks of bool only"),
    broken("test_misshapen_batches_are_refused", BroadcastsLabels, "takes the first label for the whole row"),
    broken("test_times_are_uniform", SquaresTheTime, "draws early times more often"),
    broken("test_masking_follows_the_schedule", HidesWithTheCleanRate, "hides with alpha instead of 1 - alpha"),
    broken("test_masking_follows_the_schedule", OneDrawForARow, "hides all of a row or nothing"),
    broken("test_masking_follows_the_schedule", HidesARoundedNumber, "hides a rounded number of tokens"),
    broken("test_masking_follows_the_schedule", SparesTheLastToken, "never hides the last token (Dream's evaluation)"),
    broken("test_the_loss_is_a_finite_scalar", KeepsTheGraph, "returns a metric that carries its graph"),
    broken("test_the_loss_is_a_finite_scalar", MeansOfNothing, "divides by the tokens of a row that teaches none"),
    broken("test_gradient_reaches_every_parameter", DetachesTheBackbone, "trains the head alone"),
    broken("test_the_token_count_is_true", CountsEveryToken, "counts padding and context"),
    broken("test_the_token_count_is_true", CountsHiddenTokens, "counts hidden tokens only"),
    broken("test_the_normalizer_divides_the_loss", IgnoresTheStepsNormalizer, "ignores the step's normalizer (dllm)"),
    broken("test_the_normalizer_divides_the_loss", NormalizesTheBound, "divides the bound by the normalizer"),
    broken("test_micro_batches_add_up", EveryBatchCountsOne, "has a normalizer that is no sum over rows"),
    broken("test_micro_batches_add_up", WeighsByTheLongestRow, "weighs rows by the longest of their batch"),
    broken("test_the_bound_adds_up", MeanBound, "returns the bound of the mean row"),
    broken("test_the_loss_is_the_bound", TrainsWithoutWeights, "trains on an unweighted loss and reports another"),
    broken("test_the_order_of_rows_is_irrelevant", PairsTimesInReverse, "weighs rows by the times of others"),
    broken("test_ignored_tokens_teach_nothing", LearnsContext, "learns whatever is hidden"),
    broken("test_padding_counts_for_nothing", DropsTheAttentionMask, "lets the model attend to padding"),
    broken("test_padding_counts_for_nothing", LearnsPadding, "counts padding as text"),
    broken("test_the_loss_draws_nothing", DrawsInTheLoss, "hides other tokens than it is told"),
    broken("test_the_loss_draws_nothing", KeepsTheLastNormalizer, "divides by the count of the batch before"),
    broken("test_inputs_are_not_changed", FillsInPlace, "masks the batch itself"),
    broken("test_inputs_are_not_changed", OverwritesLabels, "writes -100 into the batch's labels"),
    broken("test_inputs_are_not_changed", RunsBackward, "runs backward by itself"),
    broken("test_nothing_to_learn_is_a_zero_or_refused", SkipsTheModel, "has no gradient where nothing is hidden"),
    broken("test_nothing_to_learn_is_a_zero_or_refused", MeansNoLosses, "is nan where nothing is hidden"),
    broken("test_bfloat16_costs_no_precision", SoftmaxInTheModelsPrecision, "takes the softmax in bfloat16"),
    broken("test_bfloat16_costs_no_precision", RoundsTheLoss, "rounds the loss to bfloat16"),
    broken("test_a_right_shift_changes_nothing", ReadsTheModelItself, "reads the model's output past the denoiser"),
    broken("test_the_model_is_asked_once", AsksForEveryRow, "asks the model once for every row"),
    broken("test_the_model_is_asked_once", SkipsTheModel, "does not ask the model where nothing is hidden"),
    broken("test_only_hidden_rows_meet_the_vocabulary", ScoresEverything, "computes logits of every position"),
    broken(
        "test_drawn_losses_average_to_the_exact_one", DividesByHiddenTokens, "divides by the number of hidden tokens"
    ),
    broken("test_drawn_losses_average_to_the_exact_one", TimesOfOtherRows, "hands out the times of other rows"),
    broken("test_the_bound_is_tight", WeighsWithoutTime, "weighs all times the same"),
    broken(
        "test_the_bound_is_tight",
        BoundWithTheLossWeights,
        "weighs the bound like the loss",
        options={"weighting": "uniform"},
        loss_is_bound=False,
    ),
]
