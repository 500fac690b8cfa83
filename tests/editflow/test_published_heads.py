"""Published checkpoints load under their own names and give the published figures."""

from __future__ import annotations

import pytest
import torch
from dllm_editflow.reading import read_edits
from safetensors.torch import load_file

from tests.editflow.published import FOLDERS, GOLDENS, cases, denoiser, tensor


def all_outputs(states):
    """What the published forward gives."""
    substitute, delete, insert = states.rates.unbind(-1)
    return {
        "sub_logits": states.substitute(states.substitute_hidden),
        "ins_logits": states.insert(states.insert_hidden),
        "sub_rate_hat": substitute,
        "del_rate_hat": delete,
        "ins_rate_hat": insert,
    }


def test_every_family_has_its_case():
    assert len(cases("editflow_forward")) == len(FOLDERS)


@torch.no_grad()
@pytest.mark.parametrize(("folder", "case"), cases("editflow_forward"))
def test_the_five_outputs(folder, case):
    ids, mask = tensor(folder, case, "in.input_ids"), tensor(folder, case, "in.attention_mask").bool()
    got = read_edits(denoiser(folder), ids, mask, time=None, reader=all_outputs)
    assert set(got) == set(case["outputs"])
    for name, value in got.items():
        want = tensor(folder, case, f"out.{name}")
        assert value.shape == want.shape
        torch.testing.assert_close(value[mask], want[mask], **case["tolerance"])


@torch.no_grad()
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_time_changes_nothing_in_published_checkpoints(folder):
    ids = torch.arange(20).view(2, 10)
    outputs = [
        read_edits(denoiser(folder), ids, None, time=time, reader=all_outputs)
        for time in (None, torch.tensor([0.1, 0.9]))
    ]
    for name, value in outputs[0].items():
        assert torch.equal(value, outputs[1][name])


@pytest.mark.parametrize("folder", FOLDERS)
def test_weights_are_saved_under_the_published_names(folder, tmp_path):
    denoiser(folder).model.save_pretrained(tmp_path)
    own, published = load_file(tmp_path / "model.safetensors"), load_file(GOLDENS / folder / "model.safetensors")
    assert own.keys() == published.keys()
    assert all(torch.equal(own[name], published[name]) for name in own)
