"""The recipes of LLaDA-MoE and LLaDA 2.x: a step of each, with a small model in the place of the published one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from dllm_llada import conformance

import dllm_core as dllm
from dllm_core.conformance.adapter_suite import random_ids
from dllm_core.training.recipes import find_recipes, load_recipe
from dllm_core.training.run import check_recipe, train

NAMES = [name for name in find_recipes() if name.startswith(("llada/llada-moe", "llada/llada2"))]
HERE = ["training.use_cpu=true", "training.bf16=false", "training.max_steps=1", "training.eval_strategy=no"]


def test_there_are_three_of_each():
    kinds = ("pretrain", "sft", "sft-lora")
    assert set(NAMES) == {f"llada/{family}-{kind}" for family in ("llada-moe", "llada2") for kind in kinds}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_each(name, tmp_path):
    suite = conformance.TestLLaDA2Adapter() if "llada2" in name else conformance.TestMoEAdapter()
    rows = (random_ids(suite.denoiser(), 32, seed=seed).tolist() for seed in range(8))
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps({"input_ids": row, "labels": row}) for row in rows))
    with suite.saved(suite.model()) as folder:
        changes = [f"data.dataset={tmp_path / 'own.jsonl'}", "data.eval_count=0", "data.streaming=false", *HERE]
        recipe = load_recipe(name, [*changes, "data.insert_eos=false", "data.max_length=64"])
        assert recipe.objective["name"] == ("bd3lm" if "llada2" in name else "mdlm")
        if recipe.model.checkpoint is None:  # random weights, of a size that fits here
            assert (
                suite.adapter().model_types[0] in dllm.registry.find("adapter", recipe.model.adapter).spec.model_types
            )
            recipe = replace(recipe, tokenizer=replace(recipe.tokenizer, path=str(folder)))
            recipe = replace(recipe, model=replace(recipe.model, config=suite.tiny_config().to_dict()))
        else:
            recipe = replace(recipe, model=replace(recipe.model, checkpoint=str(folder)))
        check_recipe(recipe)
        train(recipe, tmp_path / "trained")
        adapter = tmp_path / "trained" if recipe.lora is not None else None
        trained = dllm.load(folder if adapter else tmp_path / "trained", lora=adapter, device="cpu")
    assert trained.mask_token_id == suite.denoiser().mask_token_id
