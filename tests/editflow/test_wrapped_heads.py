"""Edits are read in the one forward that DDP and FSDP wrap: gradients arrive, whichever heads a batch asks for."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from dllm_editflow.reading import read_edits
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dllm_core.conformance.adapter_suite import random_ids
from tests.editflow.conftest import SUITES

TIMES = torch.tensor([0.2, 0.9])
# What a batch may ask for: no token at all, tokens of one head only, of both.
READERS = (
    lambda states: states.rates.sum(),
    lambda states: states.rates.sum() + states.insert(states.insert_hidden).square().mean(),
    lambda states: states.substitute(states.substitute_hidden).square().mean() + states.rates.square().sum(),
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A process group of this process."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(model):
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model


@pytest.mark.parametrize("wrap", [DistributedDataParallel, sharded], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("family", ["LLaDA", "ModernBert", "Dream"])
def test_gradients_are_those_of_the_bare_model(alone, family, wrap):
    """DDP would refuse the second step if a weight had been waited for in vain."""
    bare = SUITES[family]().denoiser()
    wrapped = copy.copy(bare)
    wrapped.model = wrap(copy.deepcopy(bare.model))
    ids = random_ids(bare, 2, 10)
    for reader in READERS:
        gradients = []
        for denoiser in (bare, wrapped):
            denoiser.model.zero_grad()
            read_edits(denoiser, ids, None, time=TIMES, reader=reader).backward()
            gradients.append([weight.grad for weight in denoiser.model.parameters()])
        for want, got in zip(*gradients, strict=True):
            got = got.full_tensor() if hasattr(got, "full_tensor") else got
            torch.testing.assert_close(got, want)
