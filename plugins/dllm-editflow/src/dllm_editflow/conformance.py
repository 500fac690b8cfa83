"""What ``dllm plugins check editflow`` and pytest run: the core's conformance suite on this plugin.

The families are those of `FAMILIES`, small as their own plugins check them, with the heads that `convert` gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from dllm_a2d import conformance as a2d
from dllm_bert import conformance as bert
from dllm_dream import conformance as dream
from dllm_llada import conformance as llada

from dllm_core.conformance import AdapterTests, ObjectiveTests, PluginTests, SamplerTests, random_joint
from dllm_core.conformance.sampler_suite import LENGTH, VOCAB
from dllm_editflow.converting import with_heads
from dllm_editflow.exact_toy import exact_editor
from dllm_editflow.models.families import FAMILIES
from dllm_editflow.toy import edit_learner

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from dllm_core.models.denoiser import Denoiser
    from dllm_core.objectives import Objective


class TestPlugin(PluginTests):
    plugin = "editflow"


class OnEditModels:
    """What the checks of the objective run on: a model with edit heads."""

    component = "editflow/editflow"
    bad_options: ClassVar[dict] = {
        "source": ["mask", "masks[length:0]", "mix[empty:0.5]"],
        "alignment": ["best"],
        "kappa": ["quartic"],
        "max_weight": [0.0, -1.0],
        "normalization": ["tokens"],
        "propagation": [-1.0, float("nan")],
        "condition_dropout": [-0.1, 1.0],
        "time_epsilon": [-0.1, 1.0],
    }
    masks_tokens = False  # it edits them
    keeps_length = False
    hides_independently = False
    is_bound = False
    scores_hidden_only = False
    supports_right_shift = False  # of the edit heads, which each family undoes itself

    def learner(self, *, dtype: torch.dtype = torch.float64) -> Denoiser:
        return edit_learner(dtype=dtype)

    def lowest_time(self, objective: Objective) -> float:
        return 0.0


class TestFromMasks(OnEditModels, ObjectiveTests):
    options: ClassVar[dict] = {"source": "masks[length:2]"}


class TestFromDrafts(OnEditModels, ObjectiveTests):
    options: ClassVar[dict] = {
        "source": "mix[corrupt[share:0.4]:0.8,empty:0.2]",
        "alignment": "random",
        "kappa": "linear",
    }


class TestPropagation(OnEditModels, ObjectiveTests):
    options: ClassVar[dict] = {
        "source": "noise[length:5]",
        "alignment": "random",
        "propagation": 4.0,
        "normalization": "token",
    }


class OnExactEditors:
    """What the checks of the sampler run on: every mask becomes a token, so editing from masks is masked diffusion."""

    component = "editflow/editflow"
    bad_options: ClassVar[dict] = {
        "mode": ["leap"],
        "source": ["draft"],
        "grid": ["even"],
        "kappa": ["quartic"],
        "strength": [0.0, 1.1],
        "until": [-0.1, 1.1],
        "threshold": [0.0, 1.1],
        "max_passes": [0],
        "guidance_scale": [-1.0, float("inf")],
        "correction": [[1.0], [1.0, -1.0, 1.0]],
        "max_edits": [-1],
        "max_churn": [0.5],
    }
    lacks: ClassVar[tuple[str, ...]] = (
        "block_size",
        "cache",
        "commit",
        "confidence",
        "confidence_distribution",
        "confidence_temperature",
        "guidance_keep_tokens",
        "quota",
        "schedule",
        "steps_per_block",
        "stochastic_quota",
        "stop_at_eos",
        "suffix_window",
        "suppress_confidence_tokens",
        "time_epsilon",
    )
    follows_steps = False  # they divide the time; what fires in a step is drawn, or decided by its rate
    follows_schedule = False
    block_by_block = False
    ranks_by_confidence = False
    stops_at_eos = False

    def denoiser(self, joint: torch.Tensor | None = None, **conventions: object) -> Denoiser:
        return exact_editor(random_joint(VOCAB, LENGTH, seed=1) if joint is None else joint, **conventions)


class TestTauLeaping(OnExactEditors, SamplerTests):
    deterministic_at_zero = False  # when an edit fires is drawn


class TestNextEvent(OnExactEditors, SamplerTests):
    options: ClassVar[dict] = {"mode": "event", "until": 1.0}
    lacks = (*OnExactEditors.lacks, "steps")
    deterministic_at_zero = False
    samples_exactly = True


class TestMend(OnExactEditors, SamplerTests):
    component = "editflow/mend"
    lacks = (*OnExactEditors.lacks, "steps")


class TestSurest(OnExactEditors, SamplerTests):
    options: ClassVar[dict] = {"mode": "one"}
    lacks = (*OnExactEditors.lacks, "steps")
    samples_exactly = True


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
