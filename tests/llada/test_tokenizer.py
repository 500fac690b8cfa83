"""Mask token, turn tokens and chat template, on a small tokenizer made here."""

from __future__ import annotations

import pytest
import torch
from dllm_llada import LLaDAAdapter, LLaDAConfig
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dllm_core.errors import ModelLoadError
from dllm_core.models import Denoiser

SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>")
TURNS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LETTERS = "\n abcdefghijklmnopqrstuvwxyz"
CHAT = [
    {"role": "system", "content": " be kind \n"},
    {"role": "user", "content": "hi"},
]


def make_tokenizer(*tokens: str, size: int | None = None, **options: str) -> PreTrainedTokenizerFast:
    """One token a letter, then `tokens`, then filler up to `size`; nothing is marked special beyond bos and eos."""
    words = [*LETTERS, "?", *tokens]
    words += [f"filler{i}" for i in range(len(words), size or 0)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    defaults = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(defaults | options))


@pytest.fixture
def tokenizer():
    return LLaDAAdapter().prepare_tokenizer(make_tokenizer(*SPECIAL, *TURNS))


def test_no_id_is_added_and_a_second_call_changes_nothing():
    tokenizer = make_tokenizer(*SPECIAL, *TURNS)
    before = tokenizer.get_vocab()

    def state():
        return (
            tokenizer.get_vocab(),
            tokenizer.all_special_tokens,
            tokenizer.special_tokens_map,
            tokenizer.chat_template,
            tokenizer.backend_tokenizer.to_str(),
        )

    once = LLaDAAdapter().prepare_tokenizer(tokenizer) and state()
    assert tokenizer.get_vocab() == before
    assert LLaDAAdapter().prepare_tokenizer(tokenizer) is tokenizer
    assert state() == once


def test_the_special_tokens_are_one_id_each_and_leave_the_text(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert tokenizer.mask_token_id == vocabulary["<|mdm_mask|>"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == vocabulary["<|endoftext|>"]
    ids = tokenizer("a<|mdm_mask|>b<|eot_id|>", add_special_tokens=False)["input_ids"]
    assert ids == [vocabulary[token] for token in ("a", "<|mdm_mask|>", "b", "<|eot_id|>")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_a_pad_token_of_its_own_stays():
    tokenizer = make_tokenizer(*SPECIAL, *TURNS, "<pad>", pad_token="<pad>")
    assert LLaDAAdapter().prepare_tokenizer(tokenizer).pad_token == "<pad>"


def test_extra_special_tokens_of_its_own_stay():
    tokenizer = make_tokenizer(*SPECIAL, *TURNS, "<role>", extra_special_tokens=["<role>"])
    LLaDAAdapter().prepare_tokenizer(tokenizer)
    assert set(tokenizer.all_special_tokens) == {*SPECIAL, *TURNS, "<role>"}


@pytest.mark.parametrize(
    ("messages", "prompt", "text"),
    [
        (
            CHAT,
            True,
            "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nbe kind<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            CHAT[1:],
            False,
            "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
        ),
        (
            [CHAT[1], {"role": "assistant", "content": "oh\n"}],
            True,  # the assistant has spoken: nothing to prompt for
            "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\noh<|eot_id|>",
        ),
    ],
)
def test_the_chat_template_is_exact(tokenizer, messages, prompt, text):
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt) == text


def test_the_chat_template_in_ids(tokenizer):
    vocabulary = tokenizer.get_vocab()
    want = ["<|startoftext|>", TURNS[0], *"user", TURNS[1], "\n", "\n", "h", "i", TURNS[2]]
    want += [TURNS[0], *"assistant", TURNS[1], "\n", "\n"]
    ids = tokenizer.apply_chat_template(CHAT[1:], add_generation_prompt=True)["input_ids"]
    assert ids == [vocabulary[token] for token in want]


def test_the_wrong_template_of_a_checkpoint_is_replaced():
    tokenizer = make_tokenizer(*SPECIAL, *TURNS, chat_template="{{ bos_token }}{{ bos_token }}")
    assert LLaDAAdapter().prepare_tokenizer(tokenizer).chat_template == LLaDAAdapter.chat_template


def test_the_base_tokenizer_gets_the_turn_tokens_at_the_instruct_checkpoints_ids():
    tokenizer = LLaDAAdapter().prepare_tokenizer(make_tokenizer(*SPECIAL, size=126346))
    assert tokenizer.convert_tokens_to_ids(list(TURNS)) == [126346, 126347, 126348]
    assert len(LLaDAAdapter().prepare_tokenizer(tokenizer)) == 126349  # the published embedding has 126464 rows
    assert tokenizer.chat_template == LLaDAAdapter.chat_template


@pytest.mark.parametrize("tokens", [SPECIAL, (*SPECIAL, TURNS[2])])
def test_another_tokenizer_without_turn_tokens_does_not_grow_and_gets_no_chat_template(tokens):
    tokenizer = make_tokenizer(*tokens)
    before = tokenizer.get_vocab()
    LLaDAAdapter().prepare_tokenizer(tokenizer)
    assert tokenizer.get_vocab() == before
    assert tokenizer.chat_template is None
    assert tokenizer.mask_token == "<|mdm_mask|>"


def test_without_the_mask_token_nothing_is_invented():
    tokenizer = LLaDAAdapter().prepare_tokenizer(make_tokenizer(*SPECIAL[:2], *TURNS))
    assert tokenizer.mask_token is None
    fields = {"d_model": 8, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 8, "vocab_size": len(tokenizer)}
    with pytest.raises(ModelLoadError, match=r"no mask token.*<\|mdm_mask\|>"):
        Denoiser(LLaDAAdapter().build_model(LLaDAConfig(**fields)), LLaDAAdapter(), tokenizer)


@torch.no_grad()
def test_a_saved_checkpoint_brings_its_tokenizer(tmp_path, tokenizer, recwarn):
    adapter = LLaDAAdapter()
    fields = {"d_model": 8, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 8, "vocab_size": len(tokenizer)}
    model = adapter.build_model(LLaDAConfig(**fields))
    model.save_pretrained(tmp_path)
    assert adapter.load_tokenizer(str(tmp_path)) is None
    tokenizer.save_pretrained(tmp_path)
    loaded = adapter.load_tokenizer(str(tmp_path))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    denoiser = Denoiser(model, adapter, loaded)
    assert denoiser.mask_token_id == loaded.get_vocab()["<|mdm_mask|>"]
    assert denoiser.eot_token_ids == (loaded.get_vocab()["<|eot_id|>"],)
    assert denoiser.end_token_ids == (loaded.eos_token_id, loaded.get_vocab()["<|eot_id|>"])
