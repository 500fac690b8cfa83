"""What this plugin registers. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from dllm_core import SamplerSpec, hookimpl


@hookimpl
def dllm_samplers() -> Iterable[SamplerSpec]:
    yield SamplerSpec(
        name="remdm",
        summary="masks written tokens again at a low rate, so that more steps mean better text",
        source="ReMDM, arXiv 2503.00307, equations 3 to 6 and section 4",
        target="dllm_remdm.sampler:ReMDMSampler",
    )
