"""LoRA on every installed family: its declared targets, training, saving, loading, merging."""

from __future__ import annotations

import pytest
import torch

from dllm_core.conformance.adapter_suite import random_ids
from dllm_core.models.lora import LoraSection, add_lora, head_name, load_lora, merge_lora
from tests.families import adapter_suites, name_of

SECTION = LoraSection(r=2, alpha=4)


@pytest.mark.parametrize("suite", list(adapter_suites()), ids=name_of)
def test_from_the_familys_targets_to_the_merged_model(suite, tmp_path):
    denoiser = add_lora(suite().denoiser(), SECTION, base="-")
    model = denoiser.model
    head = head_name(model.get_base_model())
    assert not any(f".{head}.lora_" in name for name, _ in model.named_parameters())
    ids = random_ids(denoiser, 2, 12)
    masked = torch.arange(24).view(2, 12) % 3 == 0
    given = ids.masked_fill(masked, denoiser.mask_token_id)
    denoiser.nll(given, at=masked, targets=ids).sum().backward()
    moved = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    assert moved
    assert all(parameter.grad is not None for parameter in moved)
    assert sum(parameter.grad.abs().sum() > 0 for parameter in moved) > len(moved) / 2  # experts may have had no token
    with torch.no_grad():
        for parameter in moved:
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
        want = denoiser.logits(given, at=masked)
        model.save_pretrained(tmp_path)
        denoiser.lora.write(tmp_path)
        loaded = load_lora(suite().denoiser(), tmp_path)
        assert torch.equal(loaded.logits(given, at=masked), want)
        torch.testing.assert_close(merge_lora(loaded).logits(given, at=masked), want, atol=1e-4, rtol=1e-4)
