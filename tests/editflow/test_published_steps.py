"""One published step of tau-leaping with the published draws: the same edits and the same tokens."""

from __future__ import annotations

import functools

import pytest
import torch
from dllm_editflow import choosing
from dllm_editflow.apply import apply_edits
from dllm_editflow.choosing import CHANGE, INSERTION, WHICH_CHANGE, Moment
from dllm_editflow.deciding import Decide, Limits
from dllm_editflow.kappa import get_kappa
from dllm_editflow.options import EditFlowOptions
from dllm_editflow.reading import read_edits
from dllm_editflow.state import lay_out

from tests.editflow.published import cases, denoiser, tensor

KAPPA = {"LinearKappaScheduler": "linear", "CubicKappaScheduler": "published"}
WRITES_A_MASK = {"llada-editflow_step_3"}  # never done here; every other token is the same
DELETES_THE_START = {"qwen3-editflow_step_2"}  # with edit_prompt the published code deletes the beginning of sequence


def step(model, tokens: list[int], locked: list[bool], gaps: list[bool], factor: float) -> list[int]:
    rows = lay_out([tokens], [locked], [gaps], 0, model.device)
    moment = Moment(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.zeros(1).double())
    factors = torch.tensor([factor], dtype=torch.float64)
    choose = functools.partial(choosing.tau_leap, moment=moment, factors=factors, horizon=1)
    options = EditFlowOptions(grid="time", own_token=True)
    decide = Decide(rows, choose, options, moment.keys, (), model.mask_token_id, Limits(None, None))
    with torch.no_grad():
        decision = read_edits(model, rows.input_ids, None, time=None, reader=decide)
        after = apply_edits(rows, decision.edits, 2 * len(tokens), 0).rows
    return after.input_ids[0, : int(after.lengths[0])].tolist()


@pytest.mark.parametrize(("folder", "case"), cases("editflow_step"))
def test_a_published_step_is_taken(folder, case, monkeypatch):
    model, given = denoiser(folder), case["params"]
    tokens = tensor(folder, case, "in.x").tolist()
    published = {CHANGE: "u_comb", WHICH_CHANGE: "u_choose_del", INSERTION: "u_ins"}

    def drawn(keys: torch.Tensor, purpose: int, *_: object) -> torch.Tensor:
        draws = tensor(folder, case, f"in.{published[purpose]}").double()
        return draws.reshape(*[1] * (keys.dim() - 1), len(tokens))

    monkeypatch.setattr(choosing, "uniform", drawn)
    prompt = 0 if given["edit_prompt"] else given["prompt_len"]
    locked = [place < max(1, prompt) for place in range(len(tokens))]  # the first token always is
    gaps = [place >= prompt - 1 for place in range(len(tokens))]
    weight = get_kappa(KAPPA[given["scheduler"]]).weight(torch.tensor(given["t"]))
    got = step(model, tokens, locked, gaps, float(weight) * given["tau"])
    want = tensor(folder, case, "out.x_next").tolist()
    name = f"{folder}-{case['id']}"
    if name in DELETES_THE_START:
        assert got == [tokens[0], *want]
    elif name in WRITES_A_MASK:
        assert len(got) == len(want)
        assert {theirs for ours, theirs in zip(got, want, strict=True) if ours != theirs} == {model.mask_token_id}
    else:
        assert got == want
