"""A plugin with a family, a tokenizer, examples and a recipe, small enough to be trained in a second."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

PLUGIN = """
from dllm_core import ModelAdapterSpec, hookimpl

@hookimpl
def dllm_model_adapters():
    yield ModelAdapterSpec(name="acme", summary="a family", source="original", target="{package}.parts:Adapter",
                           model_types=("llama",))
"""
PARTS = """
import random
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from dllm_core import ModelAdapter

class Adapter(ModelAdapter):
    model_types = ("llama",)
    config_class = "transformers:LlamaConfig"
    model_class = "transformers:LlamaForCausalLM"
    supports_block_causal = True

def build_tokenizer():
    words = ["<pad>", "<mask>", "<eos>", *"abcdefgh"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", mask_token="<mask>", eos_token="<eos>"
    )

def examples(*, split, seed, count, longest=6):
    rng = random.Random(f"{seed}/{split}")
    for _ in range(count):
        first = rng.randrange(3, 11)
        yield {"input_ids": [3 + (first + place) % 8 for place in range(rng.randint(3, longest))] + [2]}
"""
RECIPE = """
summary: letters in alphabetical order
model:
  adapter: acme
  attn_implementation: eager
  config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 11,
           max_position_embeddings: 16, is_causal: false, pad_token_id: 0, eos_token_id: 2}
tokenizer: {builder: "PACKAGE.parts:build_tokenizer"}
data: {generator: "PACKAGE.parts:examples", options: {longest: 7}, eval_count: 16}
objective: {name: mdlm, weighting: uniform, time_epsilon: 0.05}
training: {max_steps: 6, per_device_train_batch_size: 8, learning_rate: 1e-2, logging_steps: 2, save_steps: 2,
           eval_strategy: steps, eval_steps: 3, use_cpu: true}
"""


def make_plugin(folder: Path, name: str) -> EntryPoint:
    """An importable package with a family, a tokenizer, a generator and the recipe ``letters``."""
    package = f"dllm_{name}_with_recipes"
    root = folder / package
    (root / "recipes").mkdir(parents=True)
    (root / "__init__.py").touch()
    (root / "plugin.py").write_text(PLUGIN.format(package=package))
    (root / "parts.py").write_text(PARTS)
    (root / "recipes" / "letters.yaml").write_text(RECIPE.replace("PACKAGE", package))
    return EntryPoint(name=name, value=f"{package}.plugin", group="dllm")


@pytest.fixture(scope="session")
def make_letters_plugin() -> Callable[[Path, str], EntryPoint]:
    """``make(folder, name)`` writes the plugin; the folder must be on the path for it to be imported."""
    return make_plugin
