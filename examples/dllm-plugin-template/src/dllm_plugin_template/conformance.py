"""What ``dllm plugins check plugin-template`` and pytest run: the suite of dllm-core."""

from dllm_core.conformance import CommitRuleTests, PluginTests, SamplerTests


class TestPlugin(PluginTests):
    plugin = "plugin-template"


class TestRule(CommitRuleTests):
    component = "plugin-template/plugin-template"
    bad_options = {"least": [-0.1, 1.5]}
    monotone_in = {"least": (0.1, 0.5, 0.9)}  # from bold to careful


class TestSampler(SamplerTests):
    component = "plugin-template/plugin-template"
    bad_options = {"least": [-0.1, 1.5]}
    follows_steps = False  # the rule decides how many tokens a step writes
    follows_schedule = False
