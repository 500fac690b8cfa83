"""Dream's tokenizer: Qwen2's, with the published ids, whatever files a checkpoint brings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dllm_dream.adapter import DreamAdapter
from dllm_dream.tiny import build_tokenizer
from dllm_dream.tokens import ADDED, BASE_VOCABULARY, CHATML, PLAIN
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

# Of Dream-org/Dream-v0-Base-7B; the first three are also Qwen2.5's.
PUBLISHED = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<tool_call>": 151657,
    "<|file_sep|>": 151664,
    "<|beginoftext|>": 151665,
    "<|mask|>": 151666,
}
MESSAGES = [{"role": "user", "content": "hi"}]


def write_vocabulary(folder: Path, size: int) -> Path:
    """Vocabulary and merges alone: every byte, some text of the published doctest at its ids, and filler."""
    places = {"Hello": 9707, "Ġworld": 1879, "world": 14615, "ĠHello": 21927}
    merges = ["H e", "l l", "He ll", "Hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "Ġ Hello", "w or", "wor ld"]
    pieces = [*sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges)]
    tokens = [None] * size
    for text, place in places.items():
        if place < size:
            tokens[place] = text
    free = (place for place, text in enumerate(tokens) if text is None)
    for text in dict.fromkeys(piece for piece in pieces if piece not in tokens):
        tokens[next(free)] = text
    tokens = [f"filler{place}" if text is None else text for place, text in enumerate(tokens)]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({text: place for place, text in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """As large as Qwen2's vocabulary."""
    return write_vocabulary(tmp_path_factory.mktemp("whole"), BASE_VOCABULARY)


def test_vocabulary_and_merges_alone_get_the_published_ids(whole):
    tokenizer = DreamAdapter().load_tokenizer(str(whole))
    assert {text: tokenizer.convert_tokens_to_ids(text) for text in PUBLISHED} == PUBLISHED
    assert [tokenizer.convert_tokens_to_ids(text) for text in ADDED] == list(range(151643, 151667))
    assert len(tokenizer) == 151667
    ends = tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id
    assert ends == (151666, 151643, 151643, 151665)


def test_text_is_cut_as_published_and_comes_back(whole, tmp_path):
    tokenizer = DreamAdapter().load_tokenizer(str(whole))
    assert tokenizer("Hello world")["input_ids"] == [9707, 1879]  # the figures of tokenization_dream.py
    assert tokenizer(" Hello")["input_ids"] == [21927]
    assert tokenizer("a<|mask|>b<|im_end|>")["input_ids"][1::2] == [151666, 151645]
    tokenizer.save_pretrained(tmp_path)
    again = DreamAdapter().load_tokenizer(str(tmp_path))
    assert (len(again), again.mask_token_id, again.chat_template) == (151667, 151666, CHATML)
    for text in ("Hello world 123, it's", "ünïcode 你好\n\n\tdef f(x):\n", "  two  spaces "):
        assert again.decode(again(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_vanish_from_text_and_tools_stay(whole):
    tokenizer = DreamAdapter().load_tokenizer(str(whole))
    ids = tokenizer("Hello<|im_end|><tool_call><|mask|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hello<tool_call>"
    assert not set(PLAIN) & set(tokenizer.all_special_tokens)


def test_qwen_without_the_mask_token_gets_it_where_dream_has_it(whole):
    qwen = Qwen2Tokenizer.from_pretrained(whole)
    qwen.add_tokens(list(ADDED[1:-2]), special_tokens=True)
    qwen.chat_template = "own"
    assert len(qwen) == 151665
    tokenizer = DreamAdapter().prepare_tokenizer(qwen)
    assert (tokenizer.bos_token_id, tokenizer.mask_token_id, len(tokenizer)) == (151665, 151666, 151667)
    assert tokenizer.chat_template == "own"


def test_another_vocabulary_gets_the_mask_token_alone(tmp_path):
    tokenizer = DreamAdapter().load_tokenizer(str(write_vocabulary(tmp_path, 300)))
    assert (tokenizer.eos_token_id, tokenizer.mask_token_id, len(tokenizer)) == (300, 301, 302)
    assert DreamAdapter().prepare_tokenizer(tokenizer).mask_token_id == 301
    assert len(tokenizer) == 302


def test_chat_is_chatml_where_the_checkpoint_says_nothing():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    prepared = DreamAdapter().prepare_tokenizer(tokenizer)
    want = "<|im_start|>user\nhi<|im_end|>\n"
    assert prepared.apply_chat_template(MESSAGES, tokenize=False) == want
    opened = prepared.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert opened == want + "<|im_start|>assistant\n"
