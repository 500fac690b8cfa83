"""Dream: names as published, logits shifted and attending both ways, and its way from training to text."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from dllm_dream.adapter import DreamAdapter
from dllm_dream.models import DreamConfig, DreamModel
from dllm_dream.plugin import ALGORITHMS
from dllm_dream.tiny import examples
from transformers import Qwen2Config

import dllm_core as dllm
from dllm_core.errors import ModelLoadError, OptionError
from dllm_core.evaluation import loglikelihood
from dllm_core.training.recipes import ModelSection, Recipe, TokenizerSection, load_recipe
from dllm_core.training.run import build_denoiser, train
from tests.dream.published import denoiser

# config.json of Dream-org/Dream-v0-Instruct-7B, the fields that decide shapes
PUBLISHED = {
    "model_type": "Dream",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "mask_token_id": 151666,
}
SPECIAL = ("<|endoftext|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")


def test_the_released_size_is_that_in_its_name():
    with torch.device("meta"):
        model = DreamModel(DreamConfig.from_dict(PUBLISHED))
    assert round(model.num_parameters() / 1e8) == 76
    names = set(model.state_dict())
    assert {"model.layers.27.self_attn.q_proj.bias", "lm_head.weight", "model.norm.weight"} <= names
    assert "model.layers.0.self_attn.o_proj.bias" not in names


@pytest.fixture
def checkpoint(tmp_path):
    """A small random Dream with a tokenizer as the hub has it: vocabulary, merges, and a class of its own."""
    letters = [*"abcdefgh", "Ġ"]
    ids = {token: number for number, token in enumerate([*letters, "ab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    added = {str(len(ids) + n): {"content": text, "special": True} for n, text in enumerate(SPECIAL)}
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {key: value | flags for key, value in added.items()},
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "bos_token": "<|beginoftext|>",
        "mask_token": "<|mask|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DreamModel(DreamConfig(vocab_size=16, num_key_value_heads=1, initializer_range=0.3, **sizes))
    model.save_pretrained(tmp_path)
    return tmp_path


def test_the_tokenizer_loads_without_code_from_the_checkpoint(checkpoint):
    model = dllm.load(checkpoint, device="cpu")
    assert isinstance(model.adapter, DreamAdapter)
    assert model.tokenizer("ab ba")["input_ids"] == [9, 8, 1, 0]
    assert (model.mask_token_id, model.eos_token_id, model.pad_token_id) == (13, 10, 10)
    assert model.eot_token_ids == (11,)


@torch.no_grad()
def test_rows_score_the_next_token_and_see_both_ways(checkpoint):
    model = dllm.load(checkpoint, device="cpu")
    ids = torch.randint(9, (1, 6), generator=torch.Generator().manual_seed(0))
    raw, straight = model.model(input_ids=ids).logits, model.logits(ids)
    torch.testing.assert_close(straight[:, 1:], raw[:, :-1])
    torch.testing.assert_close(straight[:, 0], raw[:, 0])
    later = ids.clone()
    later[0, -1] = (later[0, -1] + 1) % 9
    assert not torch.allclose(model.model(input_ids=later).logits[0, 0], raw[0, 0])


def test_code_that_the_checkpoint_asks_for_is_not_run(checkpoint):
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((checkpoint / name).read_text())
        wanted = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}
        (checkpoint / name).write_text(json.dumps(config | {"auto_map": wanted}))
    (checkpoint / "own.py").write_text("raise SystemExit('run')\n")
    model = dllm.load(checkpoint, device="cpu")
    assert (type(model.model), model.mask_token_id) == (DreamModel, 13)
    assert model.tokenizer("ab")["input_ids"] == [9]


def test_a_mask_token_outside_the_embedding_is_refused(checkpoint):
    """As with a tokenizer of another vocabulary: the files of a larger one beside the weights."""
    vocabulary = json.loads((checkpoint / "vocab.json").read_text())
    (checkpoint / "vocab.json").write_text(json.dumps(vocabulary | {f"w{n}": 10 + n for n in range(20)}))
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    del config["added_tokens_decoder"]
    for name in ("eos_token", "pad_token", "bos_token", "mask_token"):
        del config[name]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    (checkpoint / "tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(ModelLoadError, match="mask=31 lies outside the embedding of 16 rows"):
        dllm.load(checkpoint, device="cpu")


@torch.no_grad()
@pytest.mark.parametrize("fields", [{"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 0}])
def test_sliding_windows_of_a_config_hide_nothing(checkpoint, fields):
    ids = torch.randint(9, (1, 12), generator=torch.Generator().manual_seed(0))
    want = dllm.load(checkpoint, device="cpu").logits(ids)
    config = json.loads((checkpoint / "config.json").read_text())
    config.pop("layer_types", None)
    (checkpoint / "config.json").write_text(json.dumps(config | fields))
    assert Qwen2Config.from_pretrained(checkpoint).layer_types == ["sliding_attention"] * 2  # what Qwen2 would do
    torch.testing.assert_close(dllm.load(checkpoint, device="cpu").logits(ids), want)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_padding_changes_nothing(implementation, side):
    model = denoiser(True, implementation)
    ids = torch.randint(250, (2, 9), generator=torch.Generator().manual_seed(0))
    real = {"left": slice(4, 9), "right": slice(0, 5), "both": slice(2, 7)}[side]
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0] = False
    mask[0, real] = True
    got = model.logits(ids, mask)
    straight = denoiser(True, "sdpa")
    # A shifted model scores a row's first token from what stands before it; behind padding there is nothing to compare.
    shown = slice(real.start + (real.start > 0), real.stop)
    alone = straight.logits(ids[:1, real])[:, int(real.start > 0) :]
    torch.testing.assert_close(got[:1, shown], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got[1:], straight.logits(ids[1:]), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_a_later_token_changes_an_earlier_score(implementation):
    model = denoiser(True, implementation)
    # Nine tokens: of eight, torch 2.13's compiled flex attention makes no numbers on a CPU whose vectors hold eight.
    ids = torch.randint(250, (1, 9), generator=torch.Generator().manual_seed(0))
    later = ids.clone()
    later[0, -1] += 1
    assert (model.logits(ids)[0, 1] - model.logits(later)[0, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["entropy", "dream", "topk_margin", "origin"])
def test_a_row_draws_in_a_batch_what_it_draws_alone(name):
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
    sampler = dllm.sampler(f"dream/{name}", denoiser(), max_new_tokens=8, steps=5, temperature=0.9, top_p=None)
    together = sampler.sample(prompts)
    for row, prompt in enumerate(prompts):
        length = len(prompt) + 8
        assert torch.equal(sampler.sample([prompt]).sequences[0], together.sequences[row, :length])
    other = dllm.sampler(f"dream/{name}", denoiser(), max_new_tokens=8, steps=5, temperature=0.9, top_p=None, seed=1)
    assert not torch.equal(other.sample(prompts).sequences, together.sequences)


def test_the_published_algorithms_are_settings_of_one_sampler():
    options = {name: dllm.sampler(f"dream/{name}", denoiser()).options for name in ALGORITHMS}
    assert {name: chosen.confidence for name, chosen in options.items()} == {
        "entropy": "entropy",
        "dream": "probability",
        "topk_margin": "margin",
        "origin": "random",
    }
    for name, chosen in options.items():
        shared = chosen.temperature, chosen.top_p, chosen.block_size, chosen.confidence_distribution
        assert shared == (0.2, 0.95, None, "sampling")
        assert (chosen.stochastic_quota, chosen.time_epsilon) == ((True, 1e-3) if name == "origin" else (False, 0.0))


def test_origin_writes_each_position_with_the_chance_of_the_grid():
    """1 - s / t of each mask on linspace(1, eps, steps + 1), on its own; all that is left last."""
    steps, new, rows = 4, 50, 40
    sampler = dllm.sampler("dream/origin", denoiser(), max_new_tokens=new, steps=steps, stop_at_eos=False)
    written = [int(step.committed.sum()) for step in sampler.stream([[n] for n in range(rows)])]
    times, left = torch.linspace(1, 1e-3, steps + 1).tolist(), rows * new
    assert sum(written) == left
    for count, (t, s) in zip(written[:-1], itertools.pairwise(times[:-1]), strict=True):
        chance = 1 - s / t
        assert abs(count - left * chance) < 4 * (left * chance * (1 - chance)) ** 0.5
        left -= count


def recipe(**training: object) -> Recipe:
    whole = load_recipe("dream-tiny")
    return replace(whole, training={**whole.training, "use_cpu": True, **training})


def questions(count: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers that no training has seen."""
    found = []
    for example in examples(split="held_out", seed=1, count=count):
        given = example["labels"].count(-100)
        found.append((example["input_ids"][:given], example["input_ids"][given:]))
    return found


def test_the_tiny_recipe_trains_saves_loads_writes_and_scores(tmp_path):
    losses = {}
    for steps in (2, 60):
        train(recipe(max_steps=steps, per_device_train_batch_size=8), tmp_path / str(steps))
        trained = dllm.load(tmp_path / str(steps), device="cpu")
        assert (type(trained.model), trained.logits_are_shifted, trained.mask_token_id) == (DreamModel, True, 4)
        losses[steps] = sum(loglikelihood(trained, *pair, mc_num=8, seed=0) for pair in questions(10))
    assert losses[60] > losses[2]
    out = dllm.sampler("dream/entropy", trained, max_new_tokens=7, steps=7).sample(["123=", "4321="])
    assert out.prompt_lengths.tolist() == [4, 5]
    assert not (out.sequences == trained.mask_token_id).any()
    chat = dllm.sampler("dream/entropy", trained, max_new_tokens=2).sample([{"role": "user", "content": "12"}])
    assert trained.tokenizer.decode(chat.sequences[0]).startswith(
        "<|im_start|>user\n12<|im_end|>\n<|im_start|>assistant"
    )


@pytest.mark.slow
def test_the_tiny_recipe_learns_to_reverse_digits(tmp_path):
    train(recipe(), tmp_path)
    trained, asked = dllm.load(tmp_path, device="cpu"), questions(100)
    for name in ("dream/entropy", "dream/origin"):
        out = dllm.sampler(name, trained, max_new_tokens=7, temperature=0.0).sample([prompt for prompt, _ in asked])
        rows = [row[start:] for row, start in zip(out.sequences.tolist(), out.prompt_lengths.tolist(), strict=True)]
        right = sum(row[: len(answer)] == answer for row, (_, answer) in zip(rows, asked, strict=True))
        assert right >= 90


def test_the_tokenizer_of_fresh_weights_is_read_by_the_family(checkpoint, tmp_path):
    """Without remote code, from the files that a hub has; AutoTokenizer would look for DreamTokenizer."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ModelSection(adapter="dream", config={"vocab_size": 16, "num_key_value_heads": 1, **sizes})
    fresh = build_denoiser(model, TokenizerSection(path=str(checkpoint)), seed=0)
    assert (fresh.mask_token_id, fresh.tokenizer("ab")["input_ids"]) == (13, [9])
    with pytest.raises(OptionError, match="no tokenizer at"):
        build_denoiser(model, TokenizerSection(path=str(tmp_path / "nowhere")), seed=0)
