"""BERT and ModernBERT against published figures: logits, losses, masked sampling and infilling canvas by canvas.

Shapes: S steps, B batch, L length.
"""

from __future__ import annotations

import pytest
import torch

import dllm_core as dllm
from tests.bert.published import SCHEDULES, canvases, cases, denoiser, tensor

# BERT's published run numbers the columns where padding stands in front, so its positions are not those that the tokens
# were trained at; here a token's position counts real tokens only (see the test below).
COUNTS_PADDING = ("bert", "logits_pad_left")
# Three positions of this row have a confidence that float32 rounds to 1; which of them goes first is up to ``topk``.
SATURATED = ("modernbert", "mdlm_00", 2)


def test_no_case_is_left_out():
    assert [len(cases(kind)) for kind in ("logits", "sampler", "mdlm_loss")] == [14, 20, 16]


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("folder", "case"), cases("logits"))
def test_logits(folder, case, implementation):
    if (folder, case["id"]) == COUNTS_PADDING:
        assert case["quirks"] == ["absolute_positions_shift_with_left_padding"]
        return
    mask, places = tensor(folder, case, "in.attention_mask"), tensor(folder, case, "in.position_ids")
    is_pattern = mask is not None and mask.dim() == 4
    got = denoiser(folder, implementation).logits(
        tensor(folder, case, "in.input_ids").long(),
        None if mask is None or is_pattern else mask.bool(),
        attention=mask if is_pattern else None,
        position_ids=None if places is None else places.long(),
    )
    want = tensor(folder, case, "out.logits")
    if case.get("compare_where") == "attention_mask":
        got, want = got[mask.bool()], want[mask.bool()]
    torch.testing.assert_close(got, want, **case["tolerance"])


@torch.no_grad()
def test_berts_positions_do_not_count_padding():
    """What the published figures of left padding would be: those of the row alone."""
    folder, (case,) = "bert", [case for _, case in (p.values for p in cases("logits")) if case.get("quirks")]
    ids, mask = tensor(folder, case, "in.input_ids").long(), tensor(folder, case, "in.attention_mask").bool()
    got = denoiser(folder).logits(ids, mask)
    for row in range(len(ids)):
        alone = denoiser(folder).logits(ids[row][mask[row]][None])[0]
        torch.testing.assert_close(got[row][mask[row]], alone, atol=1e-4, rtol=1e-4)
    padded = mask.all(1).logical_not()
    theirs = tensor(folder, case, "out.logits")
    assert (theirs[padded][mask[padded]] - got[padded][mask[padded]]).abs().max() > 1


@pytest.mark.parametrize(("folder", "case"), cases("sampler"))
def test_every_canvas_is_the_published_one(folder, case):
    want, got = tensor(folder, case, "out.history").long(), canvases(folder, case, case["prompts"])
    assert len(got) == len(want)
    for row, prompt in enumerate(case["prompts"]):
        length = len(prompt) + case["params"].get("max_new_tokens", 0)
        ours, theirs = got[:, row, :length], want[:, row, :length]
        assert torch.equal(ours[-1], theirs[-1])
        if (folder, case["id"], row) != SATURATED:
            assert torch.equal(ours, theirs)
        if case["method"] == "sample":  # the steps of an infilled row depend on the blocks of the longest
            alone = canvases(folder, case, [prompt])[:, 0, :length]
            assert torch.equal(torch.unique_consecutive(alone, dim=0), torch.unique_consecutive(ours, dim=0))


@pytest.mark.parametrize(("folder", "case"), cases("mdlm_loss"))
def test_loss_and_the_norm_of_its_gradient(folder, case):
    params = case["params"]
    model = denoiser(folder, shifted=params["right_shift_logits"])
    objective = dllm.objective(
        "mdlm",
        schedule=SCHEDULES[params["scheduler"]],
        weighting={"scheduler": "schedule"}.get(params["loss_weight_type"], params["loss_weight_type"]),
        normalization=params["loss_norm_type"],
        time_epsilon=params["time_epsilon"],
    )
    batch = {}
    for name in ("input_ids", "labels"):  # a beginning of sequence may have been put in front
        prepared = tensor(folder, case, f"in.preprocessed_{name}")
        batch[name] = (tensor(folder, case, f"in.{name}") if prepared is None else prepared).long()
    if (mask := tensor(folder, case, "in.attention_mask")) is not None:
        grown = batch["input_ids"].shape[1] - mask.shape[1]
        batch["attention_mask"] = torch.nn.functional.pad(mask.long(), (grown, 0), value=1)
    corruption = dllm.Corruption(
        input_ids=tensor(folder, case, "in.noised_input_ids").long(),
        masked=tensor(folder, case, "in.masked_mask").bool(),
        time=tensor(folder, case, "in.t"),
    )
    model.model.zero_grad()
    loss = objective.loss(model, batch, corruption).loss
    torch.testing.assert_close(loss, tensor(folder, case, "out.loss"), **case["tolerance"])
    loss.backward()
    weights = dict(model.model.named_parameters())
    norms = torch.stack([weights[name].grad.norm() for name in case["grad_names"]])
    torch.testing.assert_close(norms, tensor(folder, case, "out.grad_norm_each"), rtol=1e-3, atol=1e-4)
