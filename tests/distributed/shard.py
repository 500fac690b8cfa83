"""What each of two processes runs: every installed family, its blocks sharded with FSDP2, against the whole model.

Accelerate runs FSDP on accelerators only, so torch's own `fully_shard` stands in for it, wrapped as accelerate wraps:
each module of the classes that ``_no_split_modules`` names, then the model. Called as ``shard.py FILE``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from steps import RowMDLM, fresh_denoiser, noise_of_the_row
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dllm_core.conformance.adapter_suite import random_ids
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.lora import LoraSection, add_lora

sys.path.append(str(Path(__file__).parents[2]))  # torchrun starts this as a script, which sees its own folder only

from tests.families import adapter_suites, name_of

STEPS, ROWS, LENGTH = 5, 4, 12


def denoisers() -> Iterator[tuple[str, type]]:
    """Name of every installed family that has a conformance class, and what makes a small denoiser of it."""
    yield "transformers/llama", fresh_denoiser
    yield "transformers/llama with LoRA", lambda: add_lora(fresh_denoiser(), LoraSection(r=2, alpha=4), base="-")
    for suite in adapter_suites():
        yield name_of(suite), suite().denoiser


def train(denoiser: Denoiser, batches: list[torch.Tensor], *, share: slice) -> list[float]:
    """The losses of a few steps on this process's share of each batch, averaged over processes."""
    objective = RowMDLM()
    denoiser.model.eval()  # no dropout, which would be drawn anew
    optimizer = torch.optim.SGD([p for p in denoiser.model.parameters() if p.requires_grad], lr=0.05)
    whole = share == slice(None)
    losses = []
    for ids in batches:
        total = objective.normalizer({"input_ids": ids})
        batch = {"input_ids": ids[share]}
        loss = objective.loss(denoiser, batch, noise_of_the_row(batch, denoiser), normalizer=total).loss
        loss = loss if whole else loss * dist.get_world_size()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.detach().clone()
        if not whole:
            dist.all_reduce(value)
            value /= dist.get_world_size()
        losses.append(value.item())
    return losses


def shard(denoiser: Denoiser) -> dict[str, object]:
    """Shard in place, and say what came of it."""
    model = denoiser.model
    names = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for module in [*blocks, model]:
        fully_shard(module, mesh=mesh)
    parameters = list(model.parameters())
    return {
        "names": sorted(names),
        "blocks": len(blocks),
        "sharded": all(isinstance(parameter, DTensor) for parameter in parameters),
        "local": sum(parameter.to_local().numel() for parameter in parameters if isinstance(parameter, DTensor)),
        "whole": sum(parameter.numel() for parameter in parameters),
    }


def compare(make) -> dict[str, object]:
    whole, spread = make(), make()
    batches = [random_ids(whole, ROWS, LENGTH, seed=step) for step in range(STEPS)]
    rank, rows = dist.get_rank(), ROWS // dist.get_world_size()
    result = shard(spread)
    result["whole_losses"] = train(whole, batches, share=slice(None))
    result["sharded_losses"] = train(spread, batches, share=slice(rank * rows, (rank + 1) * rows))
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {name: compare(make) for name, make in denoisers()}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()
