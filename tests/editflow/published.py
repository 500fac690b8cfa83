"""Published figures of edit heads on tiny random checkpoints. They are those of ZHZisZZ/dllm at ca17675 (float32, CPU).

Each folder of ``goldens`` holds a checkpoint in the published form, and cases: one forward pass, losses, single steps.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dllm_core as dllm

GOLDENS = Path(__file__).parent / "goldens"
FOLDERS = ("dream", "llada", "modernbert", "qwen3")


@cache
def facts(folder: str) -> dict:
    return json.loads((GOLDENS / folder / "cases.json").read_text())


@cache
def stored(folder: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / folder / "cases.safetensors")


def cases(kind: str) -> list:
    """Parameters (folder, case) for pytest."""
    return [
        pytest.param(folder, case, id=f"{folder}-{case['id']}")
        for folder in FOLDERS
        for case in facts(folder)["cases"]
        if case["kind"] == kind
    ]


def tensor(folder: str, case: dict, name: str) -> torch.Tensor | None:
    """``name`` begins with ``in.`` or ``out.``."""
    return stored(folder).get(f"{case['id']}.{name}")


@cache
def denoiser(folder: str) -> dllm.Denoiser:
    return dllm.load(GOLDENS / folder, device="cpu", dtype="float32", special_ids=facts(folder)["special_ids"])
