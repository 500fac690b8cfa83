"""What each of two processes runs: gradients of the memory-lean loss on one engine, against those of the whole batch.

Called as ``gradients.py FILE ENGINE...``. Process 0 writes to FILE, for each engine, model and batch, the losses and by
how much each gradient differs. One of the batches has no hidden token in the rows of the second process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from steps import IDS, LENGTH, VOCAB, LlamaAdapter, fresh_denoiser
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dllm_core.models import head as head_module
from dllm_core.models.denoiser import Denoiser

ROWS = 4


class OwnLinear(nn.Linear):
    """A head that is scored in chunks of rows."""


def with_own_head() -> Denoiser:
    denoiser = fresh_denoiser()
    denoiser.model.lm_head.__class__ = OwnLinear
    return denoiser


def with_lora() -> Denoiser:
    """On the head too; the second matrix is not left at zero, or the first would have no gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
        return Denoiser(get_peft_model(fresh_denoiser().model, config), LlamaAdapter(), special_ids=IDS)


def checkpointed() -> Denoiser:
    denoiser = fresh_denoiser()
    denoiser.model.train().activation_checkpointing_enable()
    return denoiser


MODELS: dict[str, Callable[[], Denoiser]] = {
    "plain": fresh_denoiser,
    "tied": lambda: fresh_denoiser(tie_word_embeddings=True),
    "own head": with_own_head,
    "lora": with_lora,
    "checkpointed": checkpointed,
}


def batch(hidden_rows: int) -> dict[str, Tensor]:
    """Half of the tokens of the first rows are hidden, none of the others."""
    draw = torch.Generator().manual_seed(hidden_rows)
    clean = torch.randint(2, VOCAB - 1, (ROWS, LENGTH), generator=draw)
    at = torch.rand(ROWS, LENGTH, generator=draw) < 0.5
    at[hidden_rows:] = False
    return {"ids": clean.masked_fill(at, IDS["mask"]), "at": at, "targets": clean}


def loss_of(denoiser: Denoiser, given: dict[str, Tensor], share: slice) -> Tensor:
    """Each row weighs otherwise; the sum over the shares is the loss of the batch."""
    weights = torch.linspace(0.5, 2, ROWS)[:, None].expand(-1, LENGTH)
    part = {name: value[share] for name, value in given.items()}
    nll = denoiser.nll(part["ids"], at=part["at"], targets=part["targets"])
    return (nll * weights[share][part["at"]]).sum() / given["at"].sum()


# ------------------------------------------------------------------------------------------------------- engines


def on_ddp(denoiser: Denoiser) -> Callable[[Tensor], dict[str, Tensor]]:
    model = denoiser.model
    denoiser.model = DistributedDataParallel(model)

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    return gradients


def on_fsdp(denoiser: Denoiser, *, head_alone: bool = False) -> Callable[[Tensor], dict[str, Tensor]]:
    """Per block and whole; with `head_alone` the head, too, is gathered for its own call only."""
    model = denoiser.model
    blocks = [module for module in model.modules() if type(module).__name__ == "LlamaDecoderLayer"]
    assert len(blocks) == 2
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    head = [model.get_output_embeddings()] if head_alone else []
    for module in [*blocks, *head, model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        loss.backward()
        learned = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert all(isinstance(gradient, DTensor) for gradient in learned.values())
        return {name: gradient.full_tensor() for name, gradient in learned.items()}

    return gradients


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
    assert all(p.numel() == 0 for p in model.parameters())

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        engine.backward(loss)
        return {name: safe_get_full_grad(p).clone() for name, p in model.named_parameters() if p.requires_grad}

    return gradients


ENGINES = {
    "ddp": on_ddp,
    "fsdp": on_fsdp,
    "fsdp, head alone": lambda denoiser: on_fsdp(denoiser, head_alone=True),
    "zero3": on_zero3,
}


def compare(engine: str, model: str, hidden_rows: int) -> dict[str, object]:
    rank, world = dist.get_rank(), dist.get_world_size()
    given, whole, spread = batch(hidden_rows), MODELS[model](), MODELS[model]()
    want_loss = loss_of(whole, given, slice(None))
    want_loss.backward()
    want = {name: p.grad for name, p in whole.model.named_parameters() if p.requires_grad}
    gradients_of = ENGINES[engine](spread)
    rows = ROWS // world
    loss = loss_of(spread, given, slice(rank * rows, (rank + 1) * rows))
    got = gradients_of(loss * world)  # engines average over processes
    total = loss.detach().clone()
    dist.all_reduce(total)
    return {
        "same names": got.keys() == want.keys(),
        "losses": [total.item(), want_loss.item()],
        "errors": {name: ((got[name] - want[name]).norm() / want[name].norm()).item() for name in want},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    head_module.PIECE_ELEMENTS["cpu"], head_module.FEWEST_COLUMNS = 4 * VOCAB, 4  # several pieces
    dist.init_process_group("gloo")
    results = {"processes": dist.get_world_size(), "engines": {}}
    for engine in sys.argv[2:]:
        models = [name for name in MODELS if (engine, name) != ("fsdp, head alone", "tied")]  # one weight, two owners
        results["engines"][engine] = {
            name: {rows: compare(engine, name, rows) for rows in (ROWS, ROWS // 2)} for name in models
        }
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()
