"""Small models of every family with edit heads, and of the families themselves."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from dllm_editflow import conformance
from dllm_editflow.converting import convert
from dllm_editflow.models.families import FAMILIES

import dllm_core as dllm
from dllm_core.conformance.adapter_suite import AdapterSuite

SUITES = {
    suite.family: suite
    for suite in vars(conformance).values()
    if isinstance(suite, type) and issubclass(suite, conformance.WithHeads) and suite is not conformance.WithHeads
}


@pytest.fixture(params=[row.name for row in FAMILIES])
def suite(request) -> type[AdapterSuite]:
    """The conformance class of each family with edit heads."""
    return SUITES[request.param]


def save_source(suite: type[AdapterSuite], folder: Path) -> dllm.Denoiser:
    """A small model of the family itself, saved."""
    own = suite.own().denoiser()
    own.model.save_pretrained(folder)
    own.tokenizer.save_pretrained(folder)
    return own


@pytest.fixture
def source(suite, tmp_path) -> tuple[dllm.Denoiser, Path]:
    """A small model of the family itself, and the folder where it is."""
    return save_source(suite, tmp_path / "source"), tmp_path / "source"


@pytest.fixture
def converted(source, suite) -> dllm.Denoiser:
    """What the source becomes, in evaluation mode."""
    own, folder = source
    model = convert(str(folder), dtype=torch.float32).model.eval()
    return dllm.Denoiser(model, suite().adapter(), copy.deepcopy(own.tokenizer))
