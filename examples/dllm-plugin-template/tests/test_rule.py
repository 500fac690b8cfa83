"""What is particular to this plugin; what holds for every plugin is in the suite."""

import torch
from dllm_core.samplers import Proposal

from dllm_plugin_template.rule import PluginTemplateRule


def test_sure_tokens_are_written_together() -> None:
    confidence = torch.tensor([[0.95, 0.2, 0.92], [0.3, 0.4, 0.1]])
    proposal = Proposal(tokens=torch.zeros(2, 3, dtype=torch.int64), confidence=confidence, priority=confidence)
    masked = torch.ones(2, 3, dtype=torch.bool)
    chosen = PluginTemplateRule(least=0.9).select(proposal, masked, quota=torch.ones(2, dtype=torch.int64))
    assert chosen.tolist() == [[True, False, True], [False, True, False]]
