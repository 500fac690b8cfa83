"""What this plugin registers. Imported whenever plugins are listed, so it imports neither torch nor the components."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_core import CommitRuleSpec, SamplerSpec, hookimpl


@hookimpl
def dllm_samplers() -> Iterable[SamplerSpec | CommitRuleSpec]:
    yield CommitRuleSpec(
        name="plugin-template",
        summary="every token that is sure enough, and the surest one in any case",
        source="original",
        target="dllm_plugin_template.rule:PluginTemplateRule",
    )
    yield SamplerSpec(
        name="plugin-template",
        summary="several tokens in a step where the model is sure of them",
        source="original",
        target="dllm_plugin_template.sampler:PluginTemplateSampler",
        defaults={"commit": "plugin-template/plugin-template"},
    )
