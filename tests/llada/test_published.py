"""The published code's own outputs: whole cases on saved weights, and one case for each config flag."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from dllm_llada import LLaDAConfig, LLaDAModelLM
from safetensors.torch import load_file

GOLDENS = Path(__file__).parent / "goldens"
VARIANTS = ("mha", "gqa", "flags", "tied")
IMPLEMENTATIONS = ("sdpa", "eager")
CASES = [
    (variant, case)
    for variant in VARIANTS
    for case in json.loads((GOLDENS / variant / "cases.json").read_text())["cases"]
    if case["kind"] in ("logits", "hidden_states")
]
EACH = json.loads((GOLDENS / "flags_each.json").read_text())


@cache
def golden_model(variant: str, implementation: str) -> LLaDAModelLM:
    folder = GOLDENS / variant
    return LLaDAModelLM.from_pretrained(folder, attn_implementation=implementation, dtype=torch.float32).eval()


@cache
def tensors(variant: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / variant / "cases.safetensors")


def published_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The weights under the figures of ``flags_each.json``: integer arithmetic, the same on every machine."""
    weights = {}
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        k = torch.arange(torch.Size(shape).numel())
        uniform = ((k * k * (i + 3) + k) % 9973).double() / 9973 - 0.5
        around = 1.0 if "norm.weight" in name or "ln_f.weight" in name else 0.0
        weights[name] = (uniform + around).reshape(shape).float()
    return weights


def test_no_case_is_left_out():
    # 40 cases, none of them tagged as a quirk of the published code, so all must hold.
    assert len(CASES) == 40
    assert not [case["id"] for _, case in CASES if case.get("quirks")]


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("variant", "case"), CASES, ids=[f"{variant}-{case['id']}" for variant, case in CASES])
def test_outputs_equal_the_published_ones(variant, case, implementation):
    inputs = {name: tensors(variant)[f"{case['id']}.in.{name}"] for name in case["inputs"]}
    want = tensors(variant)[f"{case['id']}.out.{case['kind']}"]
    out = golden_model(variant, implementation)(**inputs, output_hidden_states=True)
    got = out.logits if case["kind"] == "logits" else torch.stack(out.hidden_states)
    if case.get("compare_where"):  # rows of padding are implementation-defined
        keep = inputs["attention_mask"].bool()
        got, want = got[keep], want[keep]
    torch.testing.assert_close(got, want, **case["tolerance"])


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", EACH["cases"], ids=[json.dumps(case["flags"])[1:-1] for case in EACH["cases"]])
def test_each_flag_computes_what_the_published_code_computes(case, implementation):
    config = LLaDAConfig.from_dict(EACH["base"] | case["flags"])
    config._attn_implementation = implementation
    model = LLaDAModelLM(config).eval()
    own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.weight_tying:  # two names of one tensor; the published state dict has the embedding's
        own.pop("model.transformer.ff_out.weight")
    assert own == case["shapes"]
    model.load_state_dict(published_weights(case["shapes"]), strict=not config.weight_tying)
    mask = torch.tensor(EACH["attention_mask"])
    logits = model(torch.tensor(EACH["input_ids"]), attention_mask=mask).logits
    assert logits.shape == (2, 6, config.embedding_rows)
    got = logits[mask.bool()][:, EACH["columns"]]
    torch.testing.assert_close(got, torch.tensor(case["logits"]), atol=1e-4, rtol=1e-4)


def test_each_flag_changes_the_figures():
    base = EACH["cases"][0]["logits"]
    same = [case["flags"] for case in EACH["cases"][1:] if case["logits"] == base and "n_kv_heads" not in case["flags"]]
    # Names of weights, room in the embedding and the rotation's precision change nothing in float32.
    assert same == [{"block_group_size": 2}, {"embedding_size": None}, {"rope_full_precision": False}]
