"""dllm-llada passes the suite as it stands; so do its variants that differ in what they declare."""

from __future__ import annotations

from typing import ClassVar

from dllm_llada.conformance import (  # noqa: F401 collected here
    TestAdapter,
    TestLLaDA2,
    TestLLaDA21,
    TestPlugin,
    TestThresholdOrQuota,
    TestTinyTasks,
)

from tests.conformance.mutants.adapter import TEXTS, trained
from tests.conformance.mutants.plugin import Outsider


class TestShifted(TestAdapter):
    component = "tests.conformance.mutants.adapter:Shifted"
    checkpoint = ""


class TestModest(TestAdapter):
    component = "tests.conformance.mutants.adapter:Modest"
    checkpoint = ""


class TestWithoutTokenizer(TestAdapter):
    special_ids: ClassVar[dict] = {"mask": 99, "eos": 3, "pad": 3}
    checkpoint = ""

    def tokenizer(self) -> None:
        return None


class TestTrained(TestAdapter):
    """Also the check of trained weights."""

    texts = TEXTS

    @property
    def checkpoint(self) -> str:
        return trained()


class TestOutsider(Outsider):
    """The plugin that the mutants are made of."""

    package = "acme_good"
