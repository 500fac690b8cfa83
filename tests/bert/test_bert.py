"""BERT, RoBERTa and ModernBERT: tokenizers, chats, positions, contexts, and a model that is trained and writes.

Shapes: B batch, L length.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from dllm_bert.adapter import BertAdapter, ModernBertAdapter, RobertaAdapter
from dllm_bert.models import PositionedModernBert, PositionedRoberta
from dllm_bert.tiny import GIVEN, build_tokenizer, examples
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import BertConfig, ModernBertConfig, PreTrainedTokenizerFast, RobertaConfig

import dllm_core as dllm
from dllm_core.errors import PromptError
from dllm_core.evaluation import loglikelihood
from dllm_core.samplers.prompts import encode, encode_canvases
from dllm_core.training.recipes import find_recipes, load_recipe
from dllm_core.training.run import train

CHAT = [{"role": "user", "content": "hi"}]
SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
}
# One character each; ids of google-bert/bert-base-uncased and answerdotai/ModernBERT-base.
PUBLISHED = {
    BertAdapter: ({"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}, 30522),
    ModernBertAdapter: ({"[UNK]": 50280, "[CLS]": 50281, "[SEP]": 50282, "[PAD]": 50283, "[MASK]": 50284}, 50368),
}


def laid_out(special: dict[str, int], total: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `total` tokens, special ones where published, that frames texts as BERT's does."""
    from tokenizers.processors import TemplateProcessing

    named = {number: text for text, number in special.items()}
    backend = Tokenizer(models.WordLevel({named.get(n, f"t{n}"): n for n in range(total)}, unk_token="[UNK]"))
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(text, special[text]) for text in ("[CLS]", "[SEP]")]
    )
    names = {name: f"[{name[:-6].upper()}]" for name in ("pad_token", "mask_token", "sep_token", "cls_token")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **names)


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_published_ids(family):
    special, total = PUBLISHED[family]
    tokenizer = family().prepare_tokenizer(laid_out(special, total))
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id) == (special["[MASK]"], special["[PAD]"])
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, len(tokenizer)) == (special["[PAD]"],) * 2 + (total,)


def test_roberta_keeps_its_ends():
    backend = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}, unk_token="<unk>"))
    given = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    tokenizer = RobertaAdapter().prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **given))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (0, 2, 4)


def test_a_chat_is_text_with_tags():
    render = build_tokenizer().apply_chat_template
    asked = "[Question]\nhi\n[/Question]\n\n"
    assert render(CHAT, tokenize=False, add_generation_prompt=True) == f"{asked}[Answer]\n"
    turns = [{"role": "system", "content": " be kind "}, *CHAT, {"role": "assistant", "content": "you too"}]
    assert render(turns, tokenize=False) == f"[SYS]\nbe kind\n[/SYS]\n\n{asked}[Answer]\nyou too\n[/Answer]\n\n"


@cache
def denoiser(name: str = "modernbert", **fields: int) -> dllm.Denoiser:
    family, config = {
        "bert": (BertAdapter, BertConfig),
        "roberta": (RobertaAdapter, RobertaConfig),
        "modernbert": (ModernBertAdapter, ModernBertConfig),
    }[name]
    adapter = family()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = adapter.build_model(config(**SMALL | {"pad_token_id": 3} | fields)).eval()
        for weight in model.parameters():
            weight.data.add_(0.1 * torch.randn_like(weight))
    return dllm.Denoiser(model, adapter, adapter.prepare_tokenizer(build_tokenizer()))


def test_no_separator_stands_between_a_prompt_and_its_completion():
    """With [SEP] behind the prompt the answer's first token would be written, or scored, where none ever stood."""
    special, total = PUBLISHED[BertAdapter]
    tokenizer = BertAdapter().prepare_tokenizer(laid_out(special, total))
    bert = SimpleNamespace(tokenizer=tokenizer, mask_token_id=103, eos_token_id=0, vocab_size=total)
    assert encode(bert, ["t9"]) == [[101, 9]]
    assert encode_canvases(bert, ["t9[MASK]"]) == [[101, 9, 103, 102]]  # a text that ends where it ends
    assert encode(bert, [CHAT])[0][0] != 101


def test_answers_are_cut_at_their_closing_tag():
    """As the tag is written, and as a tokenizer that puts blanks between tokens gives it back."""
    from dllm_core.samplers.output import completion_text

    tokenizer = build_tokenizer()
    ids = tokenizer("four\n[/Answer]\n\n[Question]\nand", add_special_tokens=False)["input_ids"]
    assert completion_text(ids, tokenizer, BertAdapter.eot_texts) == "four"
    assert completion_text(ids[:4], tokenizer, BertAdapter.eot_texts) == "four"
    pieces = Tokenizer(
        models.WordLevel({text: n for n, text in enumerate(["[", "/", "Answer", "]", "four", "?"])}, "?")
    )
    pieces.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    pieces.pre_tokenizer = pre_tokenizers.Sequence([pieces.pre_tokenizer, pre_tokenizers.Punctuation()])
    blanks = PreTrainedTokenizerFast(tokenizer_object=pieces)
    ids = blanks("four [/Answer] four")["input_ids"]
    assert blanks.decode(ids) == "four [ / Answer ] four"
    assert completion_text(ids, blanks, BertAdapter.eot_texts) == "four"


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("texts", [1, 2])
def test_local_attention_reaches_as_far_as_positions_say(texts, implementation):
    """A row whose texts are written backwards gets what each gets when it is written forwards."""
    model = denoiser(local_attention=8)
    model.model.set_attn_implementation(implementation)
    ids = torch.randint(5, 101, (1, 24), generator=torch.Generator().manual_seed(1))
    places = torch.arange(24).reshape(texts, -1).fliplr().reshape(1, 24)
    of = torch.arange(24).div(24 // texts, rounding_mode="floor")  # the text of each token
    pattern = (of[:, None] == of)[None, None] if texts > 1 else None
    got = model.logits(ids, position_ids=places, attention=pattern)
    for text in range(texts):
        alone = model.logits(ids[:, of == text].flip(1))
        torch.testing.assert_close(got[:, of == text].flip(1), alone, atol=1e-4, rtol=1e-4)
    model.model.set_attn_implementation("sdpa")


@torch.no_grad()
def test_positions_that_count_columns_are_transformers_own():
    model = denoiser(local_attention=8).model
    assert isinstance(model, PositionedModernBert)
    ids = torch.randint(5, 101, (2, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(24) < torch.tensor([[24], [15]])
    ours = model(input_ids=ids, attention_mask=mask, position_ids=torch.arange(24).expand(2, -1)).logits
    theirs = super(PositionedModernBert, model).forward(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_robertas_positions_are_transformers_own():
    model = denoiser("roberta").model
    assert isinstance(model, PositionedRoberta)
    ids = torch.randint(5, 101, (2, 24), generator=torch.Generator().manual_seed(1))
    theirs = super(PositionedRoberta, model).forward(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "context"), [("bert", 48), ("roberta", 44), ("modernbert", 48)])
def test_what_does_not_fit_the_context_is_refused(name, context):
    """RoBERTa's table holds the padding's row and those in front of it besides."""
    model = denoiser(name)
    assert model.context_length == context
    fits = dllm.sampler("mdlm", model, max_new_tokens=4, steps=1).sample([[7] * (context - 4)])
    assert fits.lengths.tolist() == [context]
    with pytest.raises(PromptError, match=str(context)):
        dllm.sampler("mdlm", model, max_new_tokens=5, steps=1).sample([[7] * (context - 4)])


# ------------------------------------------------------------------------------------------------------- recipes


def test_the_recipes_are_here():
    kinds = ("tiny", "shakespeare", "openwebtext", "alpaca", "alpaca-lora", "chat-base", "chat-large")
    assert {name for name in find_recipes() if name.startswith("bert/")} == {f"bert/bert-{kind}" for kind in kinds}


def test_what_is_learned_is_the_answer_and_its_end():
    tokenizer = build_tokenizer()
    for split in ("train", "held_out"):
        for one in examples(split=split, seed=0, count=20):
            asked = [token for token, label in zip(one["input_ids"], one["labels"], strict=True) if label == GIVEN]
            learned = [label for label in one["labels"] if label != GIVEN]
            digits = tokenizer.decode(asked).split("\n")[1]
            answer = tokenizer.decode([token for token in learned if token != tokenizer.pad_token_id])
            assert answer == f"{''.join(sorted(digits))}\n[/Answer]\n\n"
            assert learned[-1] == tokenizer.pad_token_id


@pytest.mark.slow
def test_the_tiny_recipe_learns_to_answer(tmp_path):
    """A whole run, from random weights to a chat; 97 of 100 when it was written."""
    train(load_recipe("bert-tiny"), tmp_path)
    model = dllm.load(tmp_path, device="cpu")
    chats, answers = [], []
    for one in examples(split="held_out", seed=1, count=50):
        digits = model.tokenizer.decode(one["input_ids"]).split("\n")[1]
        chats.append([{"role": "user", "content": digits}])
        answers.append("".join(sorted(digits)))
    texts = dllm.sampler("mdlm", model, max_new_tokens=16, block_size=None).sample(chats).texts
    assert sum(text == answer for text, answer in zip(texts, answers, strict=True)) >= 40


def test_a_few_steps_of_the_tiny_recipe_raise_the_likelihood(tmp_path):
    train(load_recipe("bert-tiny", ["max_steps=20", "warmup_steps=2", "eval_strategy=no"]), tmp_path)
    recipe = load_recipe("bert-tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = ModernBertAdapter().build_model(ModernBertConfig(**recipe.model.config)).eval()
    after = dllm.load(tmp_path, device="cpu")
    one = next(examples(split="held_out", seed=1, count=1))
    given = one["labels"].count(GIVEN)
    scores = [
        loglikelihood(model, one["input_ids"][:given], one["input_ids"][given:], mc_num=8, seed=0)
        for model in (dllm.Denoiser(before, ModernBertAdapter(), build_tokenizer()), after)
    ]
    assert scores[1] > scores[0] + 10


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
def test_a_model_is_sharded_by_its_layers(name):
    """Embeddings are the vocabulary head's weights too, which FSDP refuses to have in two blocks."""
    model = denoiser(name).model
    blocks = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    assert len(blocks) == model.config.num_hidden_layers
