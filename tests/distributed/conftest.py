"""The family that the processes of these tests train, for `dllm.load`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dllm_core.hookspecs import ModelAdapterSpec
from dllm_core.plugins import PluginHost, PluginRecord, use_plugin_host


@pytest.fixture
def llama_family(monkeypatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    target = "steps:LlamaAdapter"
    spec = ModelAdapterSpec(name="llama", summary="-", source="-", target=target, model_types=("llama",))
    host = PluginHost()
    host.records.append(PluginRecord(name="tested", distribution="tested", version="0", target="", specs=(spec,)))
    with use_plugin_host(host):
        yield
