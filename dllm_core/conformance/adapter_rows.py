"""Checks of the forward pass itself: rows, positions, precision, gradients.

Shapes: B rows, L length, K positions asked for, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dllm_core.conformance.adapter_suite import AdapterSuite, ragged, random_ids
from dllm_core.conformance.counting import counted
from dllm_core.conformance.expect import expect, expect_close, expect_equal
from dllm_core.conformance.suite import requires
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.loading import load, resolve_path

LENGTH = 12
DIRECTIONS = 3  # directions in which the logits of a row are looked at


class RowChecks(AdapterSuite):
    """What `Denoiser.logits` and `Denoiser.nll` make of the family's model."""

    def test_every_position_is_scored(self) -> None:
        """Logits have one finite row a position and one column for each row of the embedding.

        Why: a head that is narrower than the embedding cannot score the mask token's neighbours; `Denoiser` and all
        samplers take the embedding's size for the vocabulary.

        Mend: make the vocabulary head as wide as the embedding.
        """
        denoiser = self.denoiser()
        logits = denoiser.logits(random_ids(denoiser, 2, LENGTH)).detach()
        expect_equal(tuple(logits.shape), (2, LENGTH, denoiser.vocab_size), "shape (rows, length, vocabulary)")
        expect(logits.isfinite().all(), "logits of a small random model hold NaN or infinity")

    def test_inputs_are_not_changed(self) -> None:
        """Token ids, masks, positions and weights are after a forward pass what they were before.

        Why: samplers hand the same canvas to the model again; a mask that is cut or an id that is replaced in place
        changes the text that is being written.

        Mend: clone before writing; leave ``masked_fill_`` and its kin to tensors of your own.
        """
        denoiser = self.denoiser()
        ids, mask = ragged(denoiser, "right")
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        at = torch.tensor([[3, 0]] * len(ids))
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "at": at}
        before = {name: value.clone() for name, value in (given | denoiser.model.state_dict()).items()}
        denoiser.logits(ids, mask, at=at, position_ids=positions)
        for name, value in (given | denoiser.model.state_dict()).items():
            expect(torch.equal(value, before[name]), f"a forward pass changes {name}; work on a copy")

    def test_evaluation_is_deterministic(self) -> None:
        """In evaluation mode two passes give the same logits, and draw no random numbers.

        Why: dropout that asks a flag of its own instead of ``self.training`` stays on in every sampler.

        Mend: use ``nn.Dropout``, or pass ``p if self.training else 0.0``.
        """
        denoiser = self.denoiser()
        ids = random_ids(denoiser, 2, LENGTH)
        state = torch.random.get_rng_state()
        first, second = denoiser.logits(ids).detach(), denoiser.logits(ids).detach()
        expect(torch.equal(first, second), "two passes in evaluation mode differ; switch dropout and noise off there")
        expect(torch.equal(state, torch.random.get_rng_state()), "a pass in evaluation mode draws random numbers")

    def test_rows_asked_for_are_rows_of_all(self) -> None:
        """``at=`` gives exactly those rows of the whole logits, for positions and for a mask, and projects no others.

        Why: logits of all positions are the largest waste of memory in the field; rows are picked by a hook on the
        vocabulary head, which must be the module that the model really calls.

        Mend: return that module from ``get_output_embeddings``, call it once, and do nothing across positions after it.
        """
        denoiser = self.denoiser()
        for side in ("right", "left"):
            ids, mask = ragged(denoiser, side)
            full = denoiser.logits(ids, mask).detach()
            positions = mask.long().argmax(1, keepdim=True) + torch.tensor([2, 0, 3, 3])  # in no order, one twice
            masked = mask & (ids == denoiser.mask_token_id)
            some = full.gather(1, positions[..., None].expand(-1, -1, full.shape[-1]))
            for at, want, what in ((positions, some, "positions"), (masked, full[masked], "a mask")):
                with counted(denoiser) as counts:
                    got = denoiser.logits(ids, mask, at=at).detach()
                told = f"padded on the {side}, rows asked for by {what}, and the same of all"
                expect_close(got, want, told, tolerance=self.tolerance)
                expect_equal(counts.logit_rows, want[..., 0].numel(), f"rows that the head projects, given {what}")
                expect_equal(counts.forward_passes, 1, f"forward passes of one call, given {what}")

    def test_losses_of_rows_are_those_of_their_logits(self) -> None:
        """``Denoiser.nll`` gives the cross-entropy of ``Denoiser.logits`` on masked rows, and the same gradients.

        Why: training never makes the logits whole, it scores what the vocabulary head gives; a family that caps or
        scales its logits after the head would train on other losses than it samples with.

        Mend: let ``logits_end_at_head`` answer False where the configuration asks for such a change; then rows are
        scored from the model's own logits.
        """
        denoiser = self.denoiser()
        for side in ("right", "left"):
            ids, mask = ragged(denoiser, side)
            at = mask & (ids == denoiser.mask_token_id)
            targets = random_ids(denoiser, *ids.shape, seed=2)
            logits = denoiser.logits(ids, mask, at=at)
            want = nn.functional.cross_entropy(logits, targets[at], reduction="none")
            got = denoiser.nll(ids, mask, at=at, targets=targets)
            told = f"padded on the {side}, losses by nll() and by logits(); see logits_end_at_head"
            expect_close(got.detach(), want.detach(), told, tolerance=self.tolerance)
            weights = [weight for weight in denoiser.model.parameters() if weight.requires_grad]
            slopes = (torch.autograd.grad(each.square().sum(), weights, allow_unused=True) for each in (got, want))
            for slope, other in zip(*slopes, strict=True):
                expect((slope is None) == (other is None), f"{told}: a weight gets a gradient from one only")
                if slope is not None:
                    expect_close(slope, other, f"{told}: gradients", tolerance=10 * self.tolerance)

    def test_rows_belong_to_their_positions(self) -> None:
        """The logits of a position come from the hidden state of that position, with ``logits_are_shifted`` from the
        one before it.

        Why: a model that shifts its logits itself, under an adapter that declares the shift too, is shifted twice; it
        trains, and at sampling writes every token one place off.

        Mend: let the model return logits where they arise, and declare ``logits_are_shifted`` once, in the adapter.
        """
        denoiser = self.denoiser()
        nearest = _nearest_input(denoiser)
        # A model may undo the shift of its weights itself; then nothing is left to declare.
        allowed = (-1,) if denoiser.logits_are_shifted else (0, -1)
        declared = f"logits_are_shifted = {denoiser.logits_are_shifted}"
        told = f"with {declared} the logits of a position hang on the input at offset {nearest:+d}, not {allowed[0]:+d}"
        expect(nearest in allowed, f"{told}; return logits where they arise and declare the shift in the adapter only")

    @requires("checkpoint")
    def test_declared_shift_is_that_of_the_weights(self) -> None:
        """On texts of a trained checkpoint hidden tokens are likelier with the declared shift than with the other.

        Why: whether logits are shifted is a matter of how the weights were trained; the architecture does not show it,
        and a wrong declaration gives text in which every token is off by one.

        Mend: change ``logits_are_shifted``, or give ``texts`` such as the checkpoint was trained on.
        """
        ids = dict(self.special_ids) or None
        path = resolve_path(self.checkpoint)
        with self.registered():
            declared = load(path, device="cpu", special_ids=ids)
        rows = [declared.tokenizer(text)["input_ids"] for text in self.texts]
        expect(rows, "texts is empty; give short texts such as the checkpoint was trained on")
        swap = not declared.logits_are_shifted
        other = Denoiser(declared.model, declared.adapter, declared.tokenizer, special_ids=ids, logits_are_shifted=swap)
        own, swapped = (sum(_hidden_nll(one, row) for row in rows) for one in (declared, other))
        stated = f"logits_are_shifted={declared.logits_are_shifted}"
        told = f"hidden tokens cost {own:.2f} nats with {stated}, and {swapped:.2f} with the other"
        expect(own < swapped, f"{told}; the weights were trained so, declare it")

    def test_positions_are_those_given(self) -> None:
        """``position_ids`` default to 0, 1, ..., and tokens that are reordered together with theirs keep their logits.

        Why: left-padded rows, block caches and packed texts stand or fall with positions that the model really reads
        (published block caches overwrite them by a count of columns, so left-padded rows are wrong).

        Mend: take the rotary angles or position embeddings of ``position_ids`` (B, L), row by row.
        """
        denoiser = self.denoiser(logits_are_shifted=False)
        ids = random_ids(denoiser, 2, LENGTH)
        want = denoiser.logits(ids).detach()
        natural = torch.arange(LENGTH).expand_as(ids)
        given = denoiser.logits(ids, position_ids=natural).detach()
        expect_close(given, want, "logits with positions 0, 1, ... and without any", tolerance=self.tolerance)
        if not self.attends_both_ways:
            return  # who is before whom is read from the columns
        orders = torch.stack([torch.randperm(LENGTH, generator=torch.Generator().manual_seed(i)) for i in range(2)])
        moved = denoiser.logits(ids.gather(1, orders), position_ids=orders).detach()
        want = want.gather(1, orders[..., None].expand_as(want))
        expect_close(moved, want, "logits of tokens reordered together with their positions", tolerance=self.tolerance)

    def test_bfloat16_is_finite(self) -> None:
        """In bfloat16 logits are finite, with padding on either side.

        Why: the lowest float32 becomes minus infinity in bfloat16, and a row of attention that sees nothing becomes
        NaN; checkpoints of this size are run in bfloat16 by everybody.

        Mend: take ``torch.finfo`` of the type that the scores have; compute norms and rotations in float32.
        """
        denoiser = self.denoiser(self.model().to(torch.bfloat16))
        for side in ("right", "left"):
            ids, mask = ragged(denoiser, side)
            logits = denoiser.logits(ids, mask).detach()
            expect(logits.isfinite().all(), f"padded on the {side}, bfloat16 logits hold NaN or infinity")

    def test_gradients_reach_every_weight(self) -> None:
        """A loss on masked rows gives every trainable weight a finite gradient, and none to ``extra_heads``.

        Why: a ``detach``, a ``no_grad`` or a module that is built but not used leaves weights untrained, and DDP waits
        for their gradients forever. Heads that an objective of the family's own trains are declared, not forgotten.

        Mend: take unused modules out of the model; look for ``.data``, ``detach`` and ``no_grad`` in its forward. Name
        in ``extra_heads`` what the logits are not meant to use, and only that.
        """
        model = self.model().train()
        denoiser = self.denoiser(model)
        ids, mask = ragged(denoiser, "right")
        _loss(denoiser, ids, mask).backward()
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                reached = weight.grad is not None and bool(weight.grad.count_nonzero())
                if name.partition(".")[0] in denoiser.adapter.extra_heads:
                    expect(not reached, f"the logits use {name}; take it out of extra_heads")
                    continue
                expect(reached, f"no gradient reaches {name}; use it in the forward pass or take it out")
                expect(weight.grad.isfinite().all(), f"the gradient of {name} holds NaN or infinity")

    @requires("supports_gradient_checkpointing")
    def test_gradient_checkpointing_changes_nothing(self) -> None:
        """With gradient checkpointing the loss and all gradients stay the same, and less is kept for the backward.

        Why: whatever a layer keeps besides its output, a cache or a counter, is written twice when it is recomputed.
        And a model may declare checkpointing without a layer that does it.

        Mend: derive layers from ``GradientCheckpointingLayer``; switch the cache off in training.
        """
        (plain, kept), (again, kept_again) = (self._gradients(checkpointing=on) for on in (False, True))
        expect(
            kept_again < kept,
            f"{kept} bytes are kept for the backward pass, and {kept_again} with gradient checkpointing, not fewer; "
            "derive layers from GradientCheckpointingLayer",
        )
        for name, value in plain.items():
            if value is None:
                continue
            what = f"{name} with and without gradient checkpointing"
            expect(again[name] is not None, f"{what}: no gradient with it; use GradientCheckpointingLayer")
            expect_close(again[name], value, what, tolerance=self.tolerance)

    def _gradients(self, *, checkpointing: bool) -> tuple[dict[str, Tensor | None], int]:
        """Loss and gradients, and how many bytes the forward pass keeps for the backward pass."""
        model = self.model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        denoiser = self.denoiser(model)
        ids, mask = ragged(denoiser, "right")
        sizes = []

        def keep(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # for dropout
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
                loss = _loss(denoiser, ids, mask)
            loss.backward()
        gradients = {f"the gradient of {name}": weight.grad for name, weight in model.named_parameters()}
        return {"the loss": loss.detach()} | gradients, sum(sizes)

    def test_lora_targets_are_linear_layers(self) -> None:
        """Every name in ``lora_targets`` is that of linear layers of the model.

        Why: PEFT is content when one name matches; with the names of another family most layers are left without an
        adapter (a published recipe lists q, k, v, o, up, down, gate for a model that has three of them).

        Mend: list the last parts of the names that ``model.named_modules()`` gives its linear layers, or "all-linear".
        """
        targets = self.adapter().lora_targets
        linear = [name for name, module in self.model().named_modules() if isinstance(module, (nn.Linear, Conv1D))]
        if targets == "all-linear":
            expect(len(linear) > 1, f"'all-linear' finds only {linear}; list the modules that LoRA is to adapt")
            return
        expect(isinstance(targets, tuple), f"lora_targets is {targets!r}; make it a tuple of names, or 'all-linear'")
        last = sorted({name.rpartition(".")[2] for name in linear})
        for target in targets:
            known = any(name == target or name.endswith(f".{target}") for name in linear)
            expect(known, f"no linear layer is called {target!r}; there are {', '.join(last)}")


def _nearest_input(denoiser: Denoiser) -> int:
    """The offset from a row of logits to the input that it hangs on most, over all rows that have both neighbours."""
    ids = random_ids(denoiser, 4, LENGTH)
    kept: list[Tensor] = []
    handle = denoiser.bare_model.get_input_embeddings().register_forward_hook(lambda *call: kept.append(call[2]))
    try:
        logits = denoiser.logits(ids)
    finally:
        handle.remove()
    directions = torch.randn(DIRECTIONS, logits.shape[-1], generator=torch.Generator().manual_seed(0)).to(logits)
    offsets = range(-2, 3)
    strength = torch.zeros(len(offsets))
    for row in range(2, LENGTH - 2):
        for direction in directions:
            (slope,) = torch.autograd.grad((logits[:, row] * direction).sum(), kept[0], retain_graph=True)
            strength += torch.stack([slope[:, row + offset].norm() for offset in offsets])
    return offsets[int(strength.argmax())]


def _loss(denoiser: Denoiser, ids: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of made-up tokens at the masked positions."""
    at = mask & (ids == denoiser.mask_token_id)
    return nn.functional.cross_entropy(denoiser.logits(ids, mask, at=at), random_ids(denoiser, int(at.sum()), seed=2))


@torch.no_grad()
def _hidden_nll(denoiser: Denoiser, row: list[int]) -> float:
    """Negative log-likelihood in nats, summed over a row's tokens, each hidden alone."""
    ids = torch.tensor(row).expand(len(row), -1).clone()
    ids.fill_diagonal_(denoiser.mask_token_id)
    logits = denoiser.logits(ids, at=torch.arange(len(row))[:, None])[:, 0]  # (L, V)
    return float(nn.functional.cross_entropy(logits.float(), torch.tensor(row), reduction="sum"))
