"""What all checks of plugins share: the record that the host keeps, the installed package."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import unittest
from importlib.metadata import Distribution
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlparse

from dllm_core.conformance.expect import expect
from dllm_core.conformance.fresh import FreshImport, fresh_import
from dllm_core.conformance.suite import Suite
from dllm_core.errors import did_you_mean
from dllm_core.plugins import PluginHost, PluginRecord, installed_host


class PluginSuite(Suite):
    """Attributes of the test class, and where its checks look.

    Attributes:
        plugin: the entry point's name, ``"acme"``.
    """

    plugin: ClassVar[str]
    notes: tuple[str, ...] = ()  # what a check measured, for the report

    def host(self) -> PluginHost:
        """The plugins that are installed."""
        return installed_host()

    def distribution(self) -> Distribution | None:
        """The installed package that the plugin came with; None where that is unknown or several."""
        try:
            return importlib.metadata.distribution(self.record().distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    def record(self) -> PluginRecord:
        """What became of the plugin."""
        records = {record.name: record for record in self.host().records}
        near = did_you_mean(self.plugin, records)
        installed = (
            f"no plugin {self.plugin!r} is installed.{near} Installed: {', '.join(records)}; pip install it first"
        )
        expect(self.plugin in records, installed)
        return records[self.plugin]

    def loaded(self) -> PluginRecord:
        """The same; a plugin that does not load is told of once, by the check that it does."""
        record = self.record()
        if record.state != "ok":
            raise unittest.SkipTest("the plugin does not load")
        return record

    def fresh(self) -> FreshImport:
        """What its import does in a process of its own."""
        return fresh_import(self.loaded().target, os.pathsep.join(filter(None, sys.path)))


def readme_of(distribution: Distribution) -> str | None:
    """The readme: of an editable installation the file as it is now, else what the package's metadata carries."""
    folder = _editable_folder(distribution)
    for file in sorted(folder.glob("README*")) if folder else ():
        return file.read_text(encoding="utf-8")
    payload = distribution.metadata.get_payload()
    text = payload if isinstance(payload, str) and payload.strip() else distribution.metadata.get("Description")
    return text or None


def _editable_folder(distribution: Distribution) -> Path | None:
    """The source folder of a package installed with ``pip install -e``, None of any other."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(origin["url"]).path))
