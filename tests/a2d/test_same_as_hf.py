"""lm-eval's own tasks through us and through lm-eval's ``hf`` model, for a model whose likelihood both know exactly.

A causal model that was converted with the right shift is still that causal model where each block is one token: the
token before it, which predicts it, sees clean text only. So likelihoods, greedy answers and scores must be equal. The
causal vocabulary has room for the mask token, so that both normalise over the same tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import dllm_core as dllm
from dllm_core.evaluation import DiffusionLM
from dllm_core.evaluation.runner import SEEDS
from dllm_core.evaluation.tasks import local_data
from dllm_core.models.converting import convert_checkpoint

STOCK = Path(lm_eval.tasks.__file__).parent
QUESTIONS = [{"question": f"What is {n} and {n + 1}?", "answer": f"It is so.\n#### {2 * n + 1}"} for n in range(3, 11)]
ARC = [
    {
        "question": f"Which one is {n}?",
        "choices": {"text": [f"the {word}" for word in ("small", "bigger one", "red", "no")], "label": list("ABCD")},
        "answerKey": "ABCD"[n % 4],
    }
    for n in range(12)
]
DATA = {
    "ai2_arc/ARC-Easy/test": ARC,
    "ai2_arc/ARC-Easy/train": ARC,
    "ai2_arc/ARC-Easy/validation": ARC,
    "gsm8k/main/test": QUESTIONS[:5],
    "gsm8k/main/train": QUESTIONS[5:],
    "lambada_openai/test": [{"text": f"a boy and a dog met {n} girls and the dog"} for n in range(6)],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in DATA.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["qwen3", pytest.param("gpt2", marks=pytest.mark.slow)])
def models(request, causal, tmp_path_factory) -> tuple[LM, LM]:
    """lm-eval's model of a causal checkpoint, and ours of what it was converted to."""
    source, _ = causal(request.param)
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert_checkpoint(source, folder, to="a2d", logits_are_shifted=True)
    theirs = HFLM(str(source), device="cpu", dtype="float32", batch_size=1)
    denoiser = dllm.load(str(folder), device="cpu", dtype="float32")
    return theirs, DiffusionLM(denoiser=denoiser, sampler="bd3lm", block_size=1, batch_size=4)


def evaluated(lm: LM, task: str, folder: str, data: Path, shots: int) -> Mapping[str, Any]:
    manager = TaskManager(include_path=str(STOCK / folder), include_defaults=False)
    with local_data(task, data), torch.random.fork_rng(devices=[]):
        return simple_evaluate(
            lm, tasks=[task], num_fewshot=shots, task_manager=manager, bootstrap_iters=0,
            gen_kwargs={"max_gen_toks": 12} if task == "gsm8k" else None, **SEEDS,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("task", "folder", "shots"), [("arc_easy", "arc", 0), ("lambada_openai", "lambada", 0), ("gsm8k", "gsm8k", 1)]
)
def test_a_model_that_is_both_gives_both_the_same(models, data, task, folder, shots):
    theirs, ours = (evaluated(lm, task, folder, data, shots) for lm in models)
    for mine, want in zip(ours["samples"][task], theirs["samples"][task], strict=True):
        for same in ("doc", "doc_hash", "target", "filter", "metrics"):
            assert mine[same] == want[same]
        assert [call[0] for call in mine["arguments"]] == [call[0] for call in want["arguments"]]
        assert mine["arguments"] == want["arguments"]
        assert close(mine["resps"], want["resps"])
        assert close(mine["filtered_resps"], want["filtered_resps"])
    for name, value in theirs["results"][task].items():
        assert close(ours["results"][task][name], value), name


def test_the_comparison_sees_a_block_of_two(models, data):
    theirs, ours = models
    wider = DiffusionLM(denoiser=ours.denoiser, sampler="bd3lm", block_size=2, mc_num=3)
    found = [evaluated(lm, "lambada_openai", "lambada", data, 0)["samples"]["lambada_openai"] for lm in (theirs, wider)]
    assert not all(close(a["resps"], b["resps"]) for a, b in zip(*found, strict=True))


def close(mine: Any, want: Any) -> bool:
    """Equal, numbers to what float32 keeps of a sum of a hundred logits."""
    if isinstance(want, float) and isinstance(mine, float):
        return mine == want or math.isclose(mine, want, rel_tol=1e-4, abs_tol=1e-4)
    if isinstance(want, list | tuple):
        return len(mine) == len(want) and all(map(close, mine, want))
    return mine == want
