"""What ``dllm plugins check fastdllm`` and pytest run: the core's conformance suite on this plugin."""

from __future__ import annotations

from typing import ClassVar

from dllm_core.conformance import CachePolicyTests, CommitRuleTests, PluginTests, SamplerTests
from dllm_core.conformance.commit_rule import Equivalence


class TestPlugin(PluginTests):
    plugin = "fastdllm"


class TestFast(SamplerTests):
    component = "fastdllm/fast"
    follows_steps = False  # the model's confidence decides how many tokens a step writes
    follows_schedule = False


class TestDualPreset(SamplerTests):
    component = "fastdllm/dual"
    follows_steps = False
    follows_schedule = False


class TestPrefixPreset(SamplerTests):
    component = "fastdllm/prefix"
    follows_steps = False
    follows_schedule = False


class TestParallel(SamplerTests):
    component = "fastdllm/parallel"
    follows_steps = False  # the model's confidence decides how many tokens a step writes
    follows_schedule = False


class TestWINO(SamplerTests):
    component = "fastdllm/wino"
    bad_options: ClassVar[dict] = {"verify_threshold": [-0.1, 1.5, float("nan")]}
    follows_steps = False
    follows_schedule = False
    supports_shifted_logits = False
    ranks_by_confidence = False  # what is taken back is written once more, later
    may_remask = True


class TestLoPA(SamplerTests):
    component = "fastdllm/lopa"
    bad_options: ClassVar[dict] = {
        "branches": [-1],
        "creation_weight": [-0.1, 1.5, float("nan")],
        "weakest_share": [0.0, 1.5, float("nan")],
    }
    follows_steps = False
    follows_schedule = False
    ranks_by_confidence = False  # what the rest of the canvas looks like afterwards counts too


class TestDraft(CommitRuleTests):
    component = "fastdllm/draft"
    bad_options: ClassVar[dict] = {"threshold": [-0.1, 1.5, float("nan")]}
    monotone_in: ClassVar[dict] = {"threshold": (0.2, 0.5, 0.9)}
    equivalent_to: ClassVar[tuple] = (Equivalence(options={"threshold": 1.0}, other="core/quota", quota=1),)


class TestThreshold(CommitRuleTests):
    component = "fastdllm/threshold"
    options: ClassVar[dict] = {"threshold": 0.6}
    bad_options: ClassVar[dict] = {"threshold": [-0.1, 1.5, float("nan")]}
    monotone_in: ClassVar[dict] = {"threshold": (0.2, 0.5, 0.9)}
    equivalent_to: ClassVar[tuple] = (Equivalence(options={"threshold": 1.0}, other="core/quota", quota=1),)


class TestFactor(CommitRuleTests):
    component = "fastdllm/factor"
    options: ClassVar[dict] = {"factor": 1.0}
    bad_options: ClassVar[dict] = {"factor": [-0.5, float("nan")]}
    monotone_in: ClassVar[dict] = {"factor": (2.5, 1.0, 0.5)}
    equivalent_to: ClassVar[tuple] = (Equivalence(options={"factor": 0.0}, other="core/quota", quota=1),)


class TestFrechet(CommitRuleTests):
    component = "fastdllm/frechet"
    options: ClassVar[dict] = {"delta": 0.1}
    bad_options: ClassVar[dict] = {"delta": [-0.1, 1.5, float("nan")]}
    monotone_in: ClassVar[dict] = {"delta": (0.0, 0.25, 0.9)}
    equivalent_to: ClassVar[tuple] = (Equivalence(options={"delta": 1.0}, other="core/quota", quota=1),)


class TestEntropy(CommitRuleTests):
    component = "fastdllm/entropy"
    options: ClassVar[dict] = {"entropy_bound": 2.5}  # of up to 6 nats a position here
    bad_options: ClassVar[dict] = {"entropy_bound": [-0.1, float("nan")]}
    monotone_in: ClassVar[dict] = {"entropy_bound": (20.0, 2.5, 0.1)}
    equivalent_to: ClassVar[tuple] = (Equivalence(options={"entropy_bound": 0.0}, other="core/quota", quota=1),)


class TestKlass(CommitRuleTests):
    component = "fastdllm/klass"
    options: ClassVar[dict] = {"threshold": 0.6, "kl_threshold": 0.5}
    bad_options: ClassVar[dict] = {
        "threshold": [-0.1, 1.5, float("nan")],
        "kl_threshold": [-0.1, float("nan")],
        "still_steps": [0, -1],
    }
    equivalent_to: ClassVar[tuple] = (Equivalence(other="core/quota", quota=2),)  # in a block's first step


class TestCredit(CommitRuleTests):
    component = "fastdllm/credit"
    options: ClassVar[dict] = {"threshold": 0.6}
    bad_options: ClassVar[dict] = {
        "threshold": [-0.1, 1.5, float("nan")],
        "credit_weight": [-0.1, float("nan")],
        "credit_decay": [-0.1, 1.5, float("nan")],
        "credit_power": [-0.1, float("nan")],
    }
    monotone_in: ClassVar[dict] = {"threshold": (0.2, 0.5, 0.9)}
    equivalent_to: ClassVar[tuple] = (Equivalence(options={"threshold": 1.0}, other="core/quota", quota=1),)


class TestHierarchical(CommitRuleTests):
    component = "fastdllm/hierarchical"
    surest_first = False  # a run's best goes in front of a surer position in the middle of another run
    ties_go_left = False  # to the left within each run
    bad_options: ClassVar[dict] = {
        "threshold": [-0.1, 1.5, float("nan"), 0.3],
        "low_threshold": [-0.1, 1.5, float("nan"), 0.95],
    }
    monotone_in: ClassVar[dict] = {"threshold": (0.4, 0.6, 0.9), "low_threshold": (0.0, 0.4, 0.9)}
    equivalent_to: ClassVar[tuple] = (
        Equivalence(options={"threshold": 1.0, "low_threshold": 1.0}, other="core/quota", quota=1),
    )


class TestPrefix(CachePolicyTests):
    component = "fastdllm/prefix"
    bad_options: ClassVar[dict] = {"refresh_every": [0, -1]}
    refresh_options: ClassVar[dict] = {"refresh_every": 1}


class TestDual(CachePolicyTests):
    component = "fastdllm/dual"
    bad_options: ClassVar[dict] = {"refresh_every": [0, -1]}
    refresh_options: ClassVar[dict] = {"refresh_every": 1}


class TestVicinity(CachePolicyTests):
    component = "fastdllm/vicinity"
    options: ClassVar[dict] = {"warmup": 1, "look_before": 1, "look_after": 1}
    bad_options: ClassVar[dict] = {"warmup": [0], "look_before": [-1], "look_after": [-1]}
    refresh_options: ClassVar[dict] = {"refresh_every": 1}


class TestDelayed(CachePolicyTests):
    component = "fastdllm/delayed"
    bad_options: ClassVar[dict] = {"delay": [0], "refresh_every": [0]}
    refresh_options: ClassVar[dict] = {"refresh_every": 1}


class TestInterval(CachePolicyTests):
    component = "fastdllm/interval"
    options: ClassVar[dict] = {"prompt_every": 2, "response_every": 2}
    bad_options: ClassVar[dict] = {
        "prompt_every": [0],
        "response_every": [0],
        "moving_share": [-0.1, 1.5, float("nan")],
    }
    refresh_options: ClassVar[dict] = {"refresh_every": 1}
