"""What ``dllm plugins check editflow`` and pytest run: the core's conformance suite on this plugin.

The families are those of `FAMILIES`, small as their own plugins check them, with the heads that `convert` gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dllm_a2d import conformance as a2d
from dllm_bert import conformance as bert
from dllm_dream import conformance as dream
from dllm_llada import conformance as llada

from dllm_core.conformance import AdapterTests, PluginTests
from dllm_editflow.converting import with_heads
from dllm_editflow.models.families import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


class TestPlugin(PluginTests):
    plugin = "editflow"


class WithHeads:
    """What the checks of one family run on: what those of its own adapter do.

    Attributes:
        family: name of its row in `FAMILIES`.
        own: the suite of its own plugin.
    """

    family: ClassVar[str]
    own: ClassVar[type[AdapterTests]]

    def tiny_config(self) -> PreTrainedConfig:
        row = next(row for row in FAMILIES if row.name == self.family)
        return with_heads(row, self.own().tiny_config())

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.own().tokenizer()


class TestLLaDA(WithHeads, AdapterTests):
    component = "editflow/editflow-llada"
    family, own = "LLaDA", llada.TestAdapter


class TestDream(WithHeads, AdapterTests):
    component = "editflow/editflow-dream"
    family, own = "Dream", dream.TestAdapter


class TestBert(WithHeads, AdapterTests):
    component = "editflow/editflow-bert"
    family, own = "Bert", bert.TestBert


class TestRoberta(WithHeads, AdapterTests):
    component = "editflow/editflow-roberta"
    family, own = "Roberta", bert.TestRoberta


class TestModernBert(WithHeads, AdapterTests):
    component = "editflow/editflow-modernbert"
    family, own = "ModernBert", bert.TestModernBert


class TestLlama(WithHeads, AdapterTests):
    component = "editflow/editflow-llama"
    family, own = "Llama", a2d.TestLlama


class TestQwen2(WithHeads, AdapterTests):
    component = "editflow/editflow-qwen2"
    family, own = "Qwen2", a2d.TestQwen2


class TestQwen3(WithHeads, AdapterTests):
    component = "editflow/editflow-qwen3"
    family, own = "Qwen3", a2d.TestQwen3
