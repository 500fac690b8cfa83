"""Every installed family with every sampler and every objective; and the README's table says which of them work.

Weights are random, so what is held is what does not depend on them: nothing stays masked, a row of a ragged batch gets
what it gets alone, and padding moves no loss.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dllm_core as dllm
from dllm_core import registry
from dllm_core.conformance.adapter_suite import random_ids
from dllm_core.errors import OptionError
from dllm_core.samplers.parts import option_names
from tests.families import adapter_suites, name_of

ROOT = Path(__file__).parents[1]
SUITES = list(adapter_suites())
SAMPLERS = [component.full_id for component in registry.components("sampler")]
OBJECTIVES = [component.full_id for component in registry.components("objective")]
PROMPT_LENGTHS, NEW, BLOCK = (3, 1, 7), 12, 4
OPTIONS = {"block_size": BLOCK, "steps": 6, "max_new_tokens": NEW}
LACKS = {"editflow/mend": {"steps"}}  # goes on until nothing is left to do
# Of objectives: what suits texts of 16 tokens.
OWN_OPTIONS = {"core/bd3lm": {"block_size": BLOCK}, "editflow/editflow": {"source": "masks[length:8]"}}

families = pytest.mark.parametrize("suite", SUITES, ids=name_of)


@cache
def denoiser(suite) -> dllm.Denoiser:
    return suite().denoiser()


@cache
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_in_the_table(suite, kind: str, full_id: str) -> bool:
    return full_id.partition("/")[2] in generate().served(kind, type(denoiser(suite).adapter))


def options_of(name: str) -> dict[str, int]:
    """`OPTIONS`, without those that the sampler does not have."""
    has = option_names(registry.load("sampler", name).options_class, {}) - LACKS.get(name, set())
    return {option: value for option, value in OPTIONS.items() if option in has}


@pytest.mark.parametrize("name", SAMPLERS)
@families
def test_a_row_is_sampled_as_it_is_alone(suite, name):
    model = denoiser(suite)
    if not is_in_the_table(suite, "sampler", name):
        with pytest.raises(OptionError):
            dllm.sampler(name, model, **options_of(name))
        return
    prompts = [random_ids(model, length, seed=length).tolist() for length in PROMPT_LENGTHS]
    sampler = dllm.sampler(name, model, **options_of(name))
    together = sampler.sample(prompts)
    for row, prompt in enumerate(prompts):
        written = together.sequences[row, : together.lengths[row]]
        assert written[: len(prompt)].tolist() == prompt
        assert not (written == model.mask_token_id).any()
        alone = sampler.sample(prompt)
        assert torch.equal(alone.sequences[0, : alone.lengths[0]], written)


@pytest.mark.parametrize("name", SAMPLERS)
@families
def test_what_is_given_stays_when_blanks_are_filled(suite, name):
    model = denoiser(suite)
    if not is_in_the_table(suite, "sampler", name):
        return
    canvas = random_ids(model, 2 * BLOCK, seed=5)
    canvas[1::3] = model.mask_token_id
    options = options_of(name)
    output = dllm.sampler(name, model, **options).infill([canvas.tolist()])
    filled = output.sequences[0, : output.lengths[0]]
    blank = canvas == model.mask_token_id
    assert not (filled == model.mask_token_id).any()
    if "block_size" in options:
        assert torch.equal(filled[~blank], canvas[~blank])
        return
    rest = iter(filled.tolist())  # a blank may become any number of tokens
    assert all(token in rest for token in canvas[~blank].tolist())


@pytest.mark.parametrize("name", OBJECTIVES)
@families
def test_padding_does_not_change_a_loss(suite, name):
    """The loss of a ragged batch is the same whatever stands in its padding, and teaches a head."""
    model = denoiser(suite)
    objective = dllm.objective(name, normalization="sequence", **OWN_OPTIONS.get(name, {}))
    if not is_in_the_table(suite, "objective", name):
        with pytest.raises(OptionError):
            objective.check_model(model)
        return
    objective.check_model(model)
    ids = random_ids(model, 2, 16)
    mask = torch.arange(16) < torch.tensor([[16], [8]])
    batch = {"input_ids": ids, "labels": ids.masked_fill(~mask, -100), "attention_mask": mask}
    corruption = objective.corrupt(batch, model, generator=torch.Generator().manual_seed(0))
    whole = objective.loss(model, batch, corruption)
    other = random_ids(model, 1, seed=7).item()
    changed = {**batch, "input_ids": ids.where(mask, other)}
    real = vars(corruption).get("attention_mask", mask)  # of its own, where texts change their length
    hidden = corruption.input_ids.where(real, other)
    again = objective.loss(model, changed, type(corruption)(**{**vars(corruption), "input_ids": hidden}))
    torch.testing.assert_close(whole.nll_sum, again.nll_sum, rtol=1e-5, atol=1e-5)
    model.model.zero_grad()
    whole.loss.backward()
    heads = [
        model.model.get_output_embeddings(),
        *(getattr(model.model, each, None) for each in model.adapter.extra_heads),
    ]
    gradients = [weight.grad for head in heads if head is not None for weight in head.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
    assert any(gradient is not None and gradient.count_nonzero() for gradient in gradients)


@families
def test_the_cache_of_finished_blocks_changes_nothing(suite):
    model = denoiser(suite)
    if not is_in_the_table(suite, "sampler", "core/bd3lm") or not model.adapter.supports_kv_cache:
        return
    prompts = [random_ids(model, length, seed=length).tolist() for length in PROMPT_LENGTHS]
    runs = [dllm.sampler("bd3lm", model, cache=kept, **OPTIONS).sample(prompts) for kept in ("block", "none")]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    assert runs[0].stats.positions_processed < runs[1].stats.positions_processed


def test_the_table_has_a_row_of_every_family():
    table = generate().support_table()
    assert SUITES
    for suite in SUITES:
        assert f"| `{suite.component.partition('/')[2]}` |" in table
