"""What ``dllm plugins check remdm`` and pytest run: the suite of dllm-core on this plugin.

Texts of the suite are four tokens long, so the rates are raised until tokens are masked again in them.
"""

from __future__ import annotations

from dllm_core.conformance import PluginTests, SamplerTests


class TestPlugin(PluginTests):
    plugin = "remdm"


class TestAsRegistered(SamplerTests):
    component = "remdm/remdm"
    may_remask = True
    samples_exactly = True
    bad_options = {"remask": ["off"], "eta": [-0.1, 1.5], "t_on": [0, 2], "t_off": [0.6], "alpha_on": [0, 1]}


class TestCap(TestAsRegistered):
    options = {"remask": "cap", "eta": 1.0}
    deterministic_at_zero = False  # which tokens are masked again is drawn at any temperature
    ranks_by_confidence = False  # a token that was written first may be written again last
    follows_schedule = False  # what was masked again is written besides
    samples_exactly = False  # which makes it two tokens in a step, each knowing nothing of the other


class TestConf(TestCap):
    options = {"remask": "conf"}


class TestLoop(TestCap):
    options = {"remask": "loop", "eta": 0.5, "t_on": 0.8, "t_off": 0.2, "alpha_on": 0.5}
    bad_options = TestAsRegistered.bad_options | {"t_off": [0.9]}
    follows_steps = False  # while time stands still a step may have nothing to do, and is left out
