"""What a step says of its edits, and the live view of a run that edits."""

from __future__ import annotations

import io

import pytest
import torch
from dllm_editflow import conformance
from dllm_editflow.converting import convert
from rich.console import Console

import dllm_core as dllm
from dllm_core.display.cells import Cells, edited
from dllm_core.display.run_view import view_of_run


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> dllm.Denoiser:
    folder, suite = tmp_path_factory.mktemp("source"), conformance.TestLLaDA
    own = suite.own().denoiser()
    own.model.save_pretrained(folder)
    own.tokenizer.save_pretrained(folder)
    return dllm.Denoiser(convert(str(folder), dtype=torch.float32).model.eval(), suite().adapter(), own.tokenizer)


def test_the_edits_of_each_step_lead_from_one_canvas_to_the_next(denoiser):
    sampler = dllm.sampler("editflow", denoiser, steps=12, seed=3)
    mask = denoiser.mask_token_id
    state = sampler.start_infill([[5, mask, 6, mask, mask, 7], [mask, 8]])
    rows = [Cells.at_first(row, mask) for row in state.canvas.rows]
    count = 0
    while not state.finished:
        step = sampler.step(state)
        count += sum(map(len, step.edits))
        rows = [edited(*row, mask) for row in zip(rows, step.edits, strict=True)]
        for cells, ids, length in zip(rows, step.input_ids.tolist(), state.widths, strict=True):
            assert [cells.ids[place] for place in cells.live] == ids[:length]
    assert count == sum(map(len, state.operations)) > 0


def test_a_run_that_edits_can_be_watched(denoiser):
    sampler = dllm.sampler("editflow", denoiser, steps=4, seed=3)
    state = sampler.start_infill([[5, denoiser.mask_token_id, 6]])
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    with view_of_run(console, sampler, state, [""]) as view:
        while not state.finished:
            view._next_frame = 0.0
            view.show(sampler.step(state))
        shown = view._shown(0)
    assert [shown.ids[place] for place in shown.live] == state.input_ids[0, : state.widths[0]].tolist()
    assert "edits/step" in console.file.getvalue()
    assert torch.equal(state.lengths, torch.tensor(state.widths))
