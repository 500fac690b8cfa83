"""What each of two processes runs: gradients of both token heads, unequally many rows to score, against one process.

Called as ``spread.py FILE ENGINE``. Process 0 writes to FILE by how much each gradient differs, for each model. The
second process has nothing to score at all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard

sys.path.append(str(Path(__file__).parents[2]))  # torchrun starts this as a script, which sees its own folder only

from dllm_editflow.models.heads import EditStates
from dllm_editflow.reading import read_edits
from dllm_editflow.scoring import ANY, Wanted, score_rows

from dllm_core.models import head as head_module
from dllm_core.models.denoiser import Denoiser
from dllm_core.models.lora import LoraSection, add_lora
from tests.editflow.conftest import SUITES

ROWS, LENGTH, TOKENS = 4, 10, 30
MODELS: dict[str, Callable[[], Denoiser]] = {
    "LLaDA": lambda: SUITES["LLaDA"]().denoiser(),
    "Dream with LoRA": lambda: add_lora(SUITES["Dream"]().denoiser(), LoraSection(r=2, alpha=4), base="-"),
}


def loss_of(denoiser: Denoiser, share: slice, scored_texts: int) -> Tensor:
    """All rates, and every token of the first texts of the share as if it were to be inserted and substituted."""
    ids, times = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)[share], torch.linspace(0.1, 0.9, ROWS)[share]

    def wanted(hidden: Tensor) -> Wanted:
        rows = hidden[:scored_texts].flatten(0, 1)
        numbers = torch.arange(len(rows))
        return Wanted(rows, torch.full_like(numbers, ANY), numbers, numbers % TOKENS)

    def reader(states: EditStates) -> Tensor:
        insert = score_rows(states.insert, wanted(states.insert_hidden)).sum()
        return states.rates.sum() + insert + 2 * score_rows(states.substitute, wanted(states.substitute_hidden)).sum()

    return read_edits(denoiser, ids, None, time=times, reader=reader)


def on_zero3(denoiser: Denoiser) -> Callable[[Tensor], dict[str, Tensor]]:
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    model = denoiser.model
    settings = {
        "train_micro_batch_size_per_gpu": ROWS // dist.get_world_size(),
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},  # nothing is too small to spread
        "zero_allow_untested_optimizer": True,
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(trained, lr=0.1), config=settings)
    denoiser.model = engine

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        engine.backward(loss)
        return {name: safe_get_full_grad(p).clone() for name, p in model.named_parameters() if p.requires_grad}

    return gradients


def on_fsdp(denoiser: Denoiser) -> Callable[[Tensor], dict[str, Tensor]]:
    """The heads are gathered for their own calls only."""
    model = denoiser.model
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    heads = [module for name, module in model.named_modules() if name.endswith(("sub_logits", "ins_logits"))]
    for module in [*heads, model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        loss.backward()
        return {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.requires_grad}

    return gradients


ENGINES = {"zero3": on_zero3, "fsdp": on_fsdp}


def compare(engine: str, model: str) -> dict[str, float]:
    rank, rows = dist.get_rank(), ROWS // dist.get_world_size()
    whole, spread = MODELS[model](), MODELS[model]()
    loss_of(whole, slice(None), rows).backward()
    want = {name: p.grad for name, p in whole.model.named_parameters() if p.requires_grad}
    gradients_of = ENGINES[engine](spread)
    loss = loss_of(spread, slice(rank * rows, (rank + 1) * rows), rows if rank == 0 else 0)
    got = gradients_of(loss * dist.get_world_size())  # engines average over processes
    return {name: ((got[name] - want[name]).norm() / want[name].norm().clamp(min=1e-9)).item() for name in want}


def main(file: Path, engine: str) -> None:
    head_module.PIECE_ELEMENTS["cpu"] = 6 * TOKENS  # several pieces
    if engine == "zero3":
        import deepspeed

        deepspeed.init_distributed("gloo")
    else:
        dist.init_process_group("gloo")
    found = {model: compare(engine, model) for model in MODELS}
    if dist.get_rank() == 0:
        file.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
