"""Fixtures that several folders of tests use."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent

import pytest

# Before torch is imported: on tensors this small a second thread waits more than it works, 4x where cores are busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

MakeDistribution = Callable[..., EntryPoint]
HEADER = """\
from dllm_core import (
    BundledCheckpoint, CachePolicySpec, CommitRuleSpec, EvalPresetSpec, EvalTaskSpec, ModelAdapterSpec, ObjectiveSpec,
    SamplerSpec, hookimpl,
)
"""


@pytest.fixture(autouse=True)
def fresh_graphs(request: pytest.FixtureRequest) -> None:
    """No test compiles on top of another's graphs.

    A second graph of flex attention has symbolic shapes, for which torch 2.13 writes C++ that does not compile.
    """
    if request.node.get_closest_marker("slow") is not None and "torch._dynamo" in sys.modules:
        sys.modules["torch"].compiler.reset()


@pytest.fixture
def distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeDistribution]:
    """Makes installed distributions as pip leaves them: a module and a dist-info folder on the path, in ``tmp_path``.

    ``make("acme", source)`` writes the plugin ``acme`` of the distribution ``dllm-acme`` and returns its entry point.
    """

    def make(
        plugin: str,
        source: str | None,
        *,
        distribution: str | None = None,
        version: str = "1.0",
        requires: str | None = "dllm-core<0.2,>=0.1",
        target: str | None = None,
    ) -> EntryPoint:
        distribution = distribution or f"dllm-{plugin}"
        module = f"{distribution.replace('-', '_')}_plugin"
        if source is not None:
            (tmp_path / f"{module}.py").write_text(HEADER + dedent(source), encoding="utf-8")
        folder = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        requirement = f"Requires-Dist: {requires}\n" if requires else ""
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{requirement}", encoding="utf-8"
        )
        (folder / "entry_points.txt").write_text(f"[dllm]\n{plugin} = {target or module}\n", encoding="utf-8")
        return next(iter(importlib.metadata.PathDistribution(folder).entry_points))

    monkeypatch.syspath_prepend(str(tmp_path))
    yield make
    for name in [name for name, module in sys.modules.items() if _lies_in(module, tmp_path)]:
        del sys.modules[name]


def _lies_in(module: object, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).is_relative_to(folder)
