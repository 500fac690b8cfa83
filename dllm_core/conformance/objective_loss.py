"""Checks of a loss and its gradient: what counts, what it is divided by, and that parts add up to the whole.

Shapes: B batch, L length.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dllm_core.conformance.counting import counted
from dllm_core.conformance.expect import expect, expect_close, expect_equal
from dllm_core.conformance.objective_noise import global_states
from dllm_core.conformance.objective_suite import (
    IGNORED,
    VOCAB,
    ObjectiveSuite,
    gradient,
    plain,
    ragged,
    rows_of,
    tensors_of,
    to_learn,
)
from dllm_core.conformance.sampler_chance import process_seed
from dllm_core.conformance.suite import requires
from dllm_core.errors import DllmError
from dllm_core.models.denoiser import Denoiser
from dllm_core.noise import Corruption
from dllm_core.objectives import Batch, ObjectiveOutput


class LossChecks(ObjectiveSuite):
    """What a loss is made of, and what it is divided by."""

    def test_the_loss_is_a_finite_scalar(self) -> None:
        """``loss`` is a finite scalar with a gradient; the other outputs are finite scalars without one.

        Why: a metric that carries its graph keeps every step's activations in memory; a row that teaches nothing makes
        a mean of nothing, which is nan.

        Mend: return ``nll_sum.detach()``; divide by counts with ``clamp(min=1)``.
        """
        for batch in (ragged(), plain()):
            output, grads = self._output(batch)
            expect(output.loss.requires_grad, "the loss has no gradient; compute it outside torch.no_grad()")
            scalars = {"loss": output.loss, "nll_sum": output.nll_sum, "token_count": output.token_count}
            for name, value in (scalars | output.metrics).items():
                fine = value.shape == () and bool(value.isfinite())
                expect(fine, f"{name} is {value}; return one finite number")
                expect(name == "loss" or not value.requires_grad, f"{name} has a gradient; detach it")
            expect_equal(output.token_count.dtype, torch.int64, "dtype of token_count")
            expect(grads.isfinite().all(), "the gradient is not finite; look for 0 / 0 and log(0)")

    def test_gradient_reaches_every_parameter(self) -> None:
        """Every parameter of the model gets a gradient that is not zero.

        Why: a detached hidden state or a ``torch.no_grad`` that is too wide trains the head alone, and the loss still
        falls.

        Mend: detach results only, never what the loss is computed from.
        """
        denoiser = self.learner()
        self._output(plain(), denoiser)
        silent = [n for n, p in denoiser.model.named_parameters() if p.grad is None or not p.grad.any()]
        expect(not silent, f"no gradient reaches {', '.join(silent)}; keep the graph from the loss to the input")

    def test_the_token_count_is_true(self) -> None:
        """``token_count`` is the number of tokens to learn: label not -100, attended to.

        Why: the bound per token is ``nll_sum / token_count``; padding or context in the count make it look better.

        Mend: ``maskable_positions(batch).sum()``, hidden or not.
        """
        for batch in (ragged(), plain()):
            output, _ = self._output(batch)
            expect_equal(int(output.token_count), int(to_learn(batch).sum()), "token_count")

    def test_the_normalizer_divides_the_loss(self) -> None:
        """The loss is a sum divided by ``normalizer``: the batch's own where none is given, the trainer's otherwise.

        Why: the trainer hands over the sum over all micro-batches and processes of a step; an objective that divides
        by anything else multiplies its learning rate by the number of micro-batches (MDLMTrainer of the published
        framework ignores ``num_items_in_batch``).

        Mend: divide by ``normalizer`` where it is given, and do not normalize before.
        """
        objective, denoiser = self.make(), self.learner()
        for batch in (ragged(), plain()):
            corruption = self.draw(objective, batch, denoiser)
            own = objective.normalizer(batch)
            expect(own.shape == () and own.dtype == torch.int64, f"normalizer is {own}; return one int64 number")
            want, _ = self.score(objective, denoiser, batch, corruption)
            for factor in (1, 3):
                got, _ = self.score(objective, denoiser, batch, corruption, normalizer=own * factor)
                what = f"{factor} x the loss with {factor} x the normalizer, and the loss"
                self._expect_close(got.loss * factor, want.loss, what)
                self._expect_close(got.nll_sum, want.nll_sum, f"nll_sum with {factor} x the normalizer, and without")

    def test_micro_batches_add_up(self) -> None:
        """One batch of eight rows, four of two and eight of one give the same loss and gradient.

        Why: gradient accumulation must change memory, not the result; means of means weigh the tokens of short
        sequences more.

        Mend: ``normalizer`` must be a sum over rows; everything else that a row adds must not depend on the others.
        """
        objective, denoiser, batch = self.make(), self.learner(), ragged()
        corruption = self.draw(objective, batch, denoiser, seed=4)
        whole, want = self.score(objective, denoiser, batch, corruption)
        for size in (2, 1):
            parts = [rows_of(batch, corruption, slice(i, i + size)) for i in range(0, 8, size)]
            total = torch.stack([objective.normalizer(part) for part, _ in parts]).sum()
            expect_equal(int(total), int(objective.normalizer(batch)), f"normalizers of rows by {size}, summed")
            scored = [self.score(objective, denoiser, part, cut, normalizer=total) for part, cut in parts]
            loss = torch.stack([output.loss for output, _ in scored]).sum()
            self._expect_close(loss, whole.loss, f"losses of micro-batches of {size}, summed, and of one batch")
            grads = torch.stack([grads for _, grads in scored]).sum(0)
            self._expect_close(grads, want, f"gradients of micro-batches of {size}, summed, and of one batch")

    def test_the_bound_adds_up(self) -> None:
        """``nll_sum`` and ``token_count`` of a batch are the sums of those of its rows alone.

        Why: evaluation sums them over batches of any size; a mean in their place depends on the batch size.

        Mend: sum over hidden tokens; divide nothing.
        """
        objective, denoiser, batch = self.make(), self.learner(), ragged()
        corruption = self.draw(objective, batch, denoiser, seed=4)
        whole = objective.loss(denoiser, batch, corruption)
        alone = [objective.loss(denoiser, *rows_of(batch, corruption, slice(i, i + 1))) for i in range(8)]
        self._expect_close(torch.stack([o.nll_sum for o in alone]).sum(), whole.nll_sum, "nll_sum of rows, and of all")
        expect_equal(sum(int(o.token_count) for o in alone), int(whole.token_count), "token_count of rows, summed")

    @requires("loss_is_bound")
    def test_the_loss_is_the_bound(self) -> None:
        """The loss is ``nll_sum`` divided by the normalizer.

        Why: two sums that should be one drift apart, and the curve that is watched is not the one that is trained.

        Mend: give both the same weights; say ``loss_is_bound = False`` where options make them differ.
        """
        objective = self.make()
        for batch in (ragged(), plain()):
            output, _ = self._output(batch)
            want = output.nll_sum / objective.normalizer(batch)
            self._expect_close(output.loss, want, "the loss, and nll_sum / normalizer")

    def test_the_order_of_rows_is_irrelevant(self) -> None:
        """Rows in another order give the same loss, bound and gradient.

        Why: weights, times or counts that are paired with the wrong row go unnoticed while all rows look alike.

        Mend: index weights (B, 1) by the row of each hidden token.
        """
        objective, denoiser, batch = self.make(), self.learner(), ragged()
        corruption = self.draw(objective, batch, denoiser, seed=4)
        want = self.score(objective, denoiser, batch, corruption)
        other = rows_of(batch, corruption, torch.tensor([3, 0, 7, 5, 1, 6, 2, 4]))
        self._expect_same(self.score(objective, denoiser, *other), want, "rows in another order")

    @requires("masks_tokens")
    @requires("hides_context")
    def test_ignored_tokens_teach_nothing(self) -> None:
        """Where a corruption hides context too, what stood there changes neither the loss nor the gradient.

        Why: a corruption may be made by hand, or by another objective; a prompt in the loss trains the model to write
        questions.

        Mend: score ``corruption.masked & maskable_positions(batch)``.
        """
        objective, denoiser, batch = self.make(), self.learner(), ragged()
        hidden = torch.ones_like(batch["input_ids"], dtype=torch.bool)
        corruption = self.hide(batch, hidden, torch.linspace(0.2, 0.9, 8), denoiser)
        swapped = (batch["input_ids"] + 1) % VOCAB
        other = batch | {"input_ids": torch.where(to_learn(batch), batch["input_ids"], swapped)}
        want = self.score(objective, denoiser, batch, corruption)
        got = self.score(objective, denoiser, other, corruption)
        self._expect_same(got, want, "other tokens at ignored positions")

    @requires("keeps_length")
    def test_padding_counts_for_nothing(self) -> None:
        """A padded row adds what it adds alone, and what stands in the padding changes nothing.

        Why: an attention mask that does not reach the model lets every row read its padding (the published Dream
        training learns from padding that it does not attend to).

        Mend: pass ``attention_mask`` to ``denoiser.logits``, and leave padding out of every count.
        """
        objective, denoiser = self.make(), self.learner()
        batch = ragged()
        batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, 0)  # only the mask tells
        corruption = self.draw(objective, batch, denoiser, seed=4)
        want = self.score(objective, denoiser, batch, corruption)
        real = batch["attention_mask"].bool()
        filled = dataclasses.replace(corruption, input_ids=torch.where(real, corruption.input_ids, VOCAB - 1))
        other = batch | {"input_ids": torch.where(real, batch["input_ids"], VOCAB - 1)}
        self._expect_same(self.score(objective, denoiser, other, filled), want, "other tokens in the padding")
        expect_equal(int(want[0].token_count), int(to_learn(batch).sum()), "token_count of a padded batch")

    def test_the_loss_draws_nothing(self) -> None:
        """The loss of a corruption is the same every time, with gradient or without, whatever was scored before.

        Why: a loss that draws cannot be compared with published code nor repeated; one that keeps a count from the
        last batch is wrong in the next.

        Mend: draw in ``corrupt`` and put it into the corruption; keep nothing on the objective.
        """
        objective, denoiser = self.make(), self.learner()
        cases = [(batch, self.draw(objective, batch, denoiser, seed=7)) for batch in (ragged(), plain(), plain(3))]
        losses = []
        for state in (1, 2):
            with process_seed(state):
                before = global_states()
                losses.append([float(objective.loss(denoiser, *case).loss.detach()) for case in cases])
                expect(global_states() == before, "the loss moves the process's generators; draw in corrupt")
        with torch.no_grad():
            losses.append([float(objective.loss(denoiser, *case).loss) for case in reversed(cases)][::-1])
            losses.append([float(self.make().loss(denoiser, *case).loss) for case in cases])
        for other, what in zip(
            losses[1:], ("again", "without gradient, in reverse", "of a fresh objective"), strict=True
        ):
            expect_equal(other, losses[0], f"losses of three corruptions {what}, and at first")

    def test_inputs_are_not_changed(self) -> None:
        """Batch, corruption, weights, gradients and training mode are as they were.

        Why: the trainer counts the same batch for the normalizer; labels that were overwritten in place change it.

        Mend: use ``masked_fill`` and ``torch.where``, not their forms that end in an underscore; leave ``backward`` to
        the trainer.
        """
        objective, denoiser, batch = self.make(), self.learner(), ragged()
        names = ["batch", "corruption", "model"]
        corruption = None
        for step in ("corrupt", "loss"):
            things = [batch, {} if corruption is None else corruption, denoiser.model.state_dict()]
            before = [{name: value.clone() for name, value in tensors_of(thing).items()} for thing in things]
            if step == "corrupt":
                corruption = self.draw(objective, batch, denoiser)
            else:
                objective.loss(denoiser, batch, corruption)
            for thing, old, what in zip(things, before, names, strict=True):
                now = tensors_of(thing)
                expect_equal(list(now), list(old), f"tensors of the {what} after {step}")
                for name, value in old.items():
                    expect_equal(now[name], value, f"{name} of the {what} after {step}")
        touched = any(parameter.grad is not None for parameter in denoiser.model.parameters())
        expect(not touched and denoiser.model.training, "the loss ran backward, or left training mode; do neither")

    def test_nothing_to_learn_is_a_zero_or_refused(self) -> None:
        """A batch of which nothing is to be learned, or nothing is hidden, has loss zero with a gradient of zero.

        Why: both occur (a prompt that fills the window, a low time); a nan ends the run, and a loss without gradient
        lets the other processes wait forever. A batch with nothing to learn may be refused instead.

        Mend: sum over hidden tokens of a forward pass that runs all the same; divide by ``clamp(min=1)``.
        """
        objective, batch = self.make(), plain()
        ignored = batch | {"labels": torch.full_like(batch["input_ids"], IGNORED)}
        try:
            output, grads = self._zero(ignored, self.draw(objective, ignored, self.learner()))
        except DllmError as error:
            expect("\n" not in str(error), f"the refusal takes several lines: {error}; say it in one")
        else:
            expect_equal(int(output.token_count), 0, "token_count of nothing to learn")
            expect(not grads.any(), "a batch with nothing to learn has a gradient; it must be zero")
        if self.masks_tokens:
            nothing = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
            corruption = self.hide(batch, nothing, torch.full((8,), 0.01), self.learner())
            output, grads = self._zero(batch, corruption)
            expect_equal(int(output.token_count), batch["input_ids"].numel(), "token_count with nothing hidden")
            expect(not grads.any(), "a batch with nothing hidden has a gradient; it must be zero")

    def test_bfloat16_costs_no_precision(self) -> None:
        """A bfloat16 model's loss is computed in float32: finite, and the same as from its scores in float32.

        Why: bfloat16 holds 8 bits; a softmax or a sum over many tokens in it loses the small losses altogether.

        Mend: ``logits.float()`` before the cross-entropy; do not convert back.
        """
        objective, batch = self.make(), plain(64)
        denoiser = self.learner(dtype=torch.bfloat16)
        corruption = self.draw(objective, batch, denoiser)
        output, grads = self.score(objective, denoiser, batch, corruption)
        fine = torch.finfo(output.loss.dtype).bits >= 32 and torch.finfo(output.nll_sum.dtype).bits >= 32
        expect(fine, f"loss and nll_sum are {output.loss.dtype}, {output.nll_sum.dtype}; compute them in float32")
        expect(output.loss.isfinite() and grads.isfinite().all(), "the loss or its gradient is not finite in bfloat16")
        head = denoiser.bare_model.get_output_embeddings()
        handle = head.register_forward_hook(lambda module, inputs, logits: logits.float())
        want = objective.loss(denoiser, batch, corruption)
        handle.remove()
        for name in ("loss", "nll_sum"):
            got, exact = getattr(output, name).detach().float(), getattr(want, name).detach().float()
            expect_close(got, exact, f"{name} of a bfloat16 model, and of its scores in float32", tolerance=1e-5)

    @requires("supports_right_shift")
    def test_a_right_shift_changes_nothing(self) -> None:
        """A family whose logits are shifted gets the loss of one whose logits are not.

        Why: an objective that reads the model's own output learns the neighbour's token, and the loss still falls.

        Mend: read scores from ``denoiser.logits`` alone: row i scores the token at position i.
        """
        objective, batch = self.make(), plain()
        batch["labels"] = batch["input_ids"].clone()
        batch["labels"][:, 0] = IGNORED  # a shifted model has no row for the first token
        straight, shifted = self.denoiser(), self.denoiser(shifted=True)
        corruption = self.draw(objective, batch, straight)
        want = objective.loss(straight, batch, corruption)
        got = objective.loss(shifted, batch, corruption)
        self._expect_close(got.loss, want.loss, "losses of a shifted family, and of one that is not")
        self._expect_close(got.nll_sum, want.nll_sum, "nll_sum of a shifted family, and of one that is not")

    @requires("one_forward")
    def test_the_model_is_asked_once(self) -> None:
        """A loss is one forward pass, whatever the batch.

        Why: DDP, FSDP and gradient checkpointing count on one forward for each backward, the same number on every
        process, also where nothing is hidden.

        Mend: score all hidden positions with one call of ``denoiser.logits``; do not leave it out where there are none.
        """
        objective, denoiser = self.make(), self.learner()
        cases = [(batch, self.draw(objective, batch, denoiser)) for batch in (ragged(), plain())]
        if self.masks_tokens:
            nothing = torch.zeros_like(plain()["input_ids"], dtype=torch.bool)
            cases.append((plain(), self.hide(plain(), nothing, torch.full((8,), 0.01), denoiser)))
        for case, what in zip(cases, ("a ragged batch", "a plain one", "one where nothing is hidden"), strict=False):
            with counted(denoiser) as counts:
                objective.loss(denoiser, *case)
            expect_equal(counts.forward_passes, 1, f"forward passes of {what}")

    @requires("scores_hidden_only")
    def test_only_hidden_rows_meet_the_vocabulary(self) -> None:
        """The vocabulary head projects the hidden positions to learn, and no others.

        Why: logits of every position are the largest waste of memory in training: 8 sequences of 4096 tokens and
        126,000 words are 16 GB in float32.

        Mend: ``denoiser.logits(ids, mask, at=masked)`` with ``masked`` (B, L) bool.
        """
        objective, denoiser, batch = self.make(), self.learner(), ragged()
        corruption = self.draw(objective, batch, denoiser, seed=4)
        hidden = int((corruption.masked & to_learn(batch)).sum())
        with counted(denoiser) as counts:
            objective.loss(denoiser, batch, corruption)
        expect_equal(counts.logit_rows, hidden, "rows that met the vocabulary head, hidden tokens")

    def _output(self, batch: Batch, denoiser: Denoiser | None = None) -> tuple[ObjectiveOutput, Tensor]:
        """The output for a batch with drawn noise, and its gradient."""
        objective, denoiser = self.make(), self.learner() if denoiser is None else denoiser
        return self.score(objective, denoiser, batch, self.draw(objective, batch, denoiser, seed=4))

    def _zero(self, batch: Batch, corruption: Corruption) -> tuple[ObjectiveOutput, Tensor]:
        """The output of a loss that must be zero and have a gradient for every parameter."""
        objective, denoiser = self.make(), self.learner()
        output = objective.loss(denoiser, batch, corruption)
        values = [float(output.loss.detach()), float(output.nll_sum)]
        expect_equal(values, [0.0, 0.0], "loss and nll_sum where no token is hidden")
        expect(output.loss.requires_grad, "the loss has no gradient where no token is hidden; keep it in the graph")
        output.loss.backward()
        absent = [name for name, parameter in denoiser.model.named_parameters() if parameter.grad is None]
        expect(not absent, f"no gradient for {', '.join(absent)} where no token is hidden; run the model all the same")
        return output, gradient(denoiser)

    def _expect_close(self, got: Tensor, want: Tensor, what: str) -> None:
        expect_close(got.detach().double(), want.detach().double(), what, tolerance=self.tolerance)

    def _expect_same(
        self, got: tuple[ObjectiveOutput, Tensor], want: tuple[ObjectiveOutput, Tensor], what: str
    ) -> None:
        for name in ("loss", "nll_sum"):
            self._expect_close(getattr(got[0], name), getattr(want[0], name), f"{name} with {what}, and without")
        self._expect_close(got[1], want[1], f"the gradient with {what}, and without")
